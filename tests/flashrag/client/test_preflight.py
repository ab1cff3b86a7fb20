"""What retrieval servers, and other servers at their address, say before a run, and what becomes of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from flashrag.client import RetrievalServers, ask_servers, server_findings
from flashrag.errors import UserError
from flashrag.preflight import Severity
from tests.proxies import HttpProxy, clear_proxies, running

OPENAPI = Path(__file__).resolve().parents[3] / "rag_serving" / "openapi.json"
GOOD = RetrievalServers({"http://a:1": {"documents": 44}}, [], 1000, None, False)


def retrieval_server(**health: Any) -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.get("/health")(lambda: {"status": "healthy", **health})
    app.get("/openapi.json")(lambda: json.loads(OPENAPI.read_text(encoding="utf-8")))
    app.post("/search")(lambda: [[], []])
    return app


def asked(url: str) -> RetrievalServers:
    return ask_servers(url, "Who?", 5, "search_url")


def told(servers: RetrievalServers, num: int = 5) -> list[tuple[Severity, str]]:
    found = server_findings(servers, "http://a:1", "search_url", num, "search.top_n")
    return [(finding.severity, finding.message) for finding in found]


def test_retrieval_servers_say_what_they_hold(serve: Callable[[Any], str], closed_url: str):
    url = serve(retrieval_server(documents=44, retrieval_method="e5"))
    found = asked(f"{url},{closed_url}")
    assert found.healthy == {url: {"status": "healthy", "documents": 44, "retrieval_method": "e5"}}
    assert [problem.partition(" (")[0] for problem in found.problems] == [
        f"no retrieval server answers at search_url={closed_url}"
    ]
    assert found.max_top_n == 1000  # the committed document's
    assert (found.problem, found.is_final) == (None, False)


@pytest.mark.parametrize("health", ["", "OK", "[]"])
def test_what_is_healthy_and_no_retrieval_server_is_found_out(serve: Callable[[Any], str], health: str):
    app = FastAPI()
    app.get("/health")(lambda: Response(health))  # a model server's has no content
    found = asked(serve(app))
    assert found.is_final
    assert "answered 404" in (found.problem or "")
    assert found.max_top_n is None


def test_a_busy_retrieval_server_may_answer_later(serve: Callable[[Any], str]):
    app = FastAPI()
    app.get("/health")(lambda: {"status": "healthy"})
    app.post("/search")(lambda: JSONResponse({"detail": "full"}, 429))
    found = asked(serve(app))
    assert not found.is_final
    assert "answered 429" in (found.problem or "")


def test_no_retrieval_server_at_all(closed_url: str):
    with pytest.raises(UserError, match="no retrieval server answers"):
        asked(closed_url)


def test_this_machine_s_server_is_asked_without_a_proxy(serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch):
    url = serve(retrieval_server())
    with running(HttpProxy()) as proxy:
        clear_proxies(monkeypatch)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert asked(url).problem is None
        assert proxy.asked == []


def test_what_follows_from_the_answers():
    assert told(GOOD) == []
    assert told(GOOD, num=1001) == [
        (
            Severity.ERROR,
            "search.top_n=1001, but the retrieval server gives at most 1000 passages (its max_top_n); lower "
            "search.top_n, or raise the server's limit",
        )
    ]
    assert told(GOOD, num=45) == [(Severity.WARNING, "http://a:1 holds 44 passages, fewer than search.top_n=45")]
    refused = (
        Severity.ERROR,
        "a search at search_url=http://a:1 was refused: 404; give the address of a ReSearch retrieval server",
    )
    assert told(GOOD._replace(problem="404", is_final=True)) == [refused]
    assert told(GOOD._replace(problem="429")) == [(Severity.WARNING, "a search was not answered within 5 s: 429")]
    other = "no retrieval server answers at search_url=http://b:1"
    assert told(GOOD._replace(problems=[other])) == [
        (Severity.WARNING, f"{other}; the other servers are used until it answers")
    ]
