"""The benchmark's command: refusals, and one quick run over a real index whose last line holds every figure."""

import json

import pytest

from scripts.bench.retrieval import main

pytestmark = pytest.mark.timeout(600)


def test_missing_flags_and_files_are_refused(tmp_path, capsys):
    assert main([]) == 2
    flags = ["--index_path", "/no/minilm.index", "--corpus_path", "/no/corpus.jsonl"]
    assert main([*flags, "--questions", "/no/questions.jsonl"]) == 2
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "why?"}\n')
    assert main([*flags, "--questions", str(questions)]) == 2
    refusals = capsys.readouterr().err.splitlines()[-2:]
    assert refusals[0].startswith("error: --questions: /no/questions.jsonl cannot be read")
    assert refusals[1].startswith("error: index_path: nothing at /no/minilm.index")


@pytest.mark.slow
def test_a_quick_run_ends_with_its_figures(dense_site, capsys):
    assert main([*dense_site.flags, "--quick"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures.keys() >= {
        "server_over_limit",
        "server_over_blocking",
        "single_client_latency_ratio",
        "overload_5xx",
        "overload_p99_ms",
        "health_p99_ms",
        "rss_4_over_1",
    }
    assert figures["answers_checked"] > 0
    assert figures["answers_wrong"] == 0
    assert figures["overload_5xx"] == 0
