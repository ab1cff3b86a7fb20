"""The soak's command: refusals, a short mixed soak, and restarts under clients that retry."""

import json

import pytest

from scripts.soak.retrieval import main

pytestmark = pytest.mark.timeout(900)


def test_bad_flags_and_files_are_refused(capsys):
    flags = ["--index_path", "/no/minilm.index", "--corpus_path", "/no/corpus.jsonl", "--questions", "/no/q.jsonl"]
    assert main([*flags, "--requests", "0"]) == 2
    assert main(flags) == 2
    assert "error: /no/q.jsonl is not a file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_soak_is_survived(dense_site, capsys):
    assert main([*dense_site.flags, "--requests", "2000", "--clients", "16"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["requests"], figures["violations"]) == (2000, 0)
    assert figures["statuses"]["200"] > 1400


@pytest.mark.slow
def test_restarts_lose_nothing(dense_site, capsys):
    assert main([*dense_site.flags, "--restart", "2"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["restarts"], figures["violations"]) == (2, 0)
    assert figures["answered"] > 0
