"""The check before an expensive start, against real HTTP servers in every state that a retrieval server can be in."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response

from flashrag.client import check_addresses, check_server
from flashrag.errors import UserError


def server_in_state(status: int, body: str = "{}", token: str | None = None) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    def health() -> Response:
        return Response(body, status)

    @app.get("/metrics")
    def metrics(request: Request) -> Response:
        refused = token is not None and request.headers.get("authorization") != f"Bearer {token}"
        return Response(status_code=401 if refused else 200)

    return app


@pytest.fixture
def healthy_url(serve: Callable[[Any], str]) -> str:
    return serve(server_in_state(200))


def test_a_healthy_server_passes(healthy_url: str):
    check_server(healthy_url)
    check_server(healthy_url + "/")


def test_a_server_that_is_not_there_is_named_with_the_remedy(closed_url: str):
    with pytest.raises(UserError, match=f"no retrieval server answers at search_url={closed_url}.*serving.py"):
        check_server(closed_url)
    with pytest.raises(UserError, match=f"at remote_retriever_url={closed_url}"):
        check_server(closed_url, key="remote_retriever_url")


def test_a_server_that_is_loading_is_told_apart(serve: Callable[[Any], str]):
    with pytest.raises(UserError, match="is still loading its index"):
        check_server(serve(server_in_state(503, '{"status":"loading"}')))
    with pytest.raises(UserError, match="/health answered 503, expected 200"):
        check_server(serve(server_in_state(503, '{"status":"draining"}')))


def test_the_token_is_tried_before_the_run(serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch):
    url = serve(server_in_state(200, token="right"))
    monkeypatch.setenv("RESEARCH_SERVER_TOKEN", "wrong-one")
    with pytest.raises(UserError, match="asks for another token; set RESEARCH_SERVER_TOKEN") as error:
        check_server(url)
    assert "wrong-one" not in str(error.value)
    monkeypatch.setenv("RESEARCH_SERVER_TOKEN", "right")
    check_server(url)


def test_one_healthy_server_of_several_is_enough(healthy_url: str, closed_url: str, caplog: pytest.LogCaptureFixture):
    check_server(f"{closed_url}, {healthy_url}")
    (warning,) = caplog.messages
    assert closed_url in warning and "the other servers are used until it answers" in warning
    with pytest.raises(UserError, match=f"search_url={closed_url}.*search_url={closed_url}/b"):
        check_server([closed_url, closed_url + "/b"])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://[",
        "localhost:80",
        "http://a b",
        "http://h:x",
        ",",
        "http://a,",
        "http://a,b",
    ],
)
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(UserError, match="search_url="):
        check_addresses(url, "search_url")


def test_the_key_in_the_message_can_be_the_callers():
    with pytest.raises(UserError, match="remote_retriever_url='x' is not an http address"):
        check_addresses("x", "remote_retriever_url")


def test_several_addresses_are_all_checked_and_each_kept_once():
    assert check_addresses("http://a:1/ , https://b/x/,http://a:1", "search_url") == ("http://a:1", "https://b/x")
    assert check_addresses(["http://a:1/", "http://[::1]:2"], "search_url") == ("http://a:1", "http://[::1]:2")
    with pytest.raises(UserError, match="search_url='nonsense' is not an http address"):
        check_addresses(["http://a:1", "nonsense"], "search_url")
    with pytest.raises(UserError, match="search_url names no server"):
        check_addresses([], "search_url")


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://a:1/retrieve", "http://a:1"),
        ("http://a:1/search/", "http://a:1"),
        ("http://a:1/rag/batch_search", "http://a:1/rag"),
        ("http://a:1/queries", "http://a:1"),
        ("http://a:1/health", "http://a:1"),
        ("https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1"),
        ("http://a:1/search?q=x", "http://a:1"),
    ],
)
def test_the_address_of_a_route_is_answered_with_the_base_address(given, base):
    with pytest.raises(UserError) as caught:
        check_addresses(f"http://b:1,{given}", "search_url")
    assert str(caught.value) == f"search_url={given!r} is the address of a route; give the base address: {base}"


@pytest.mark.parametrize("rest", ["?a=1", "/?a=1", "#x", "/#/"])
def test_an_address_ends_before_its_query(rest: str):
    with pytest.raises(UserError, match=r"goes on after \? or #.*; give the base address: http://a:1$"):
        check_addresses(f"http://a:1{rest}", "search_url")


@pytest.mark.parametrize("url", ["http://retrieve:1", "http://a:1/research", "http://a:1/search/v1", "http://search"])
def test_an_address_that_only_looks_like_a_routes_is_taken(url):
    assert check_addresses(url, "search_url") == (url,)
