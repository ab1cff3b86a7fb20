"""What keeps the server from starting, and what its `--check` prints."""

import os
import socket

import pytest

from flashrag.preflight import Severity, examine
from flashrag.system.local_server import free_port
from rag_serving.preflight import SERVING_RULES, ServingFacts
from rag_serving.serving import main


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("RESEARCH_SERVER_TOKEN", None)


def found(*args, **kwargs) -> list[tuple[Severity, str, str]]:
    facts = ServingFacts(*args, **kwargs)
    try:
        return [(each.severity, each.rule, each.message) for each in examine(SERVING_RULES, facts)]
    finally:
        if kwargs.get("host") != "203.0.113.7":
            facts.listener.close()


def test_nothing_is_said_about_a_good_site(site):
    assert found(site.config, num_retriever=2) == []


def test_a_configuration_that_is_not_there_leaves_the_other_rules(tmp_path):
    assert [(rule, message[:21]) for _, rule, message in found(tmp_path / "none.yaml", host="203.0.113.7")] == [
        ("serving.config", "config file not found"),
        ("serving.address", "--host '203.0.113.7' "),
    ]


def test_an_open_server_without_a_token_is_warned_about(site, monkeypatch):
    ((severity, rule, message),) = found(site.config, host="0.0.0.0")
    assert (severity, rule) == (Severity.WARNING, "serving.address")
    assert "set RESEARCH_SERVER_TOKEN" in message
    monkeypatch.setenv("RESEARCH_SERVER_TOKEN", "secret")
    assert found(site.config, host="0.0.0.0") == []


def test_more_searches_than_cores_are_warned_about(site):
    cores = len(os.sched_getaffinity(0))
    assert found(site.config, num_retriever=cores + 1) == []
    ((severity, rule, message),) = found(site.config, num_retriever=cores + 2)
    assert (severity, rule) == (Severity.WARNING, "serving.searches")
    assert message.endswith(f"{cores + 1} keep them busy")


def test_the_check_prints_the_plan_frees_the_port_and_writes_nothing(site, capsys):
    before, port = set(site.folder.rglob("*")), free_port()
    assert main(["--config", str(site.config), "--port", str(port), "--check"]) == 0
    told = capsys.readouterr().out
    for line in (
        f"  configuration     {site.config}",
        f"  address           http://127.0.0.1:{port}",
        "  token             none (RESEARCH_SERVER_TOKEN is not set)",
        "  searches at once  1",
        "  limits            1024 queries in a request, 1000 documents a query, 4096 queries may wait, 30 s",
        "  method        bm25",
        f"  passages      8 in {site.values['corpus_path']}",
        "  encoder       none",
        "  0 errors: this would start",
    ):
        assert f"{line}\n" in told
    assert f"  index         bm25, 8, 0 MiB ({site.values['index_path']})\n" in told
    assert set(site.folder.rglob("*")) == before
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_the_check_tells_all_faults(site, capsys):
    config = site.with_config(index_path="/no/bm25", corpus_path="/no/corpus.jsonl")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--config", str(config), "--port", str(port), "--check"]) == 2
    told = capsys.readouterr().out
    assert "  address           unknown\n" in told
    for message in ("(Address already in use)", "nothing at /no/bm25", "no file at /no/corpus.jsonl"):
        assert message in told
    assert told.endswith("  3 errors: this would not start\n")
