"""The retrieval client against a real HTTP server whose answers are written by hand."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response

from flashrag.client import RetrievalClient, check_search_url, check_server
from flashrag.document import Document
from flashrag.errors import SearchError, UserError

FOUND = [{"id": "7", "contents": '"King"\nKing Wu'}, {"id": 8, "contents": "Zhou"}]


class Server:
    """Answers /search with the scripted (status, body) pairs, the last one for ever after."""

    def __init__(self) -> None:
        self.script: list[tuple[int, str]] = []
        self.requests: list[dict] = []
        self.healthy = True
        self.delay_s = 0.0
        self.url = ""

    def answer(self, *script: tuple[int, object]) -> None:
        self.requests.clear()
        self.script = [(status, body if isinstance(body, str) else json.dumps(body)) for status, body in script]

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/search")
        async def search(request: Request) -> Response:
            self.requests.append(await request.json())
            status, body = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            await asyncio.sleep(self.delay_s)
            return Response(body, status_code=status, media_type="application/json")

        @app.get("/health")
        async def health() -> Response:
            return Response(status_code=200 if self.healthy else 503)

        return app


@pytest.fixture(scope="module")
def running(serve: Callable[[Any], str]) -> Server:
    server = Server()
    server.url = serve(server.app())
    return server


@pytest.fixture
def server(running: Server) -> Server:
    running.answer((200, FOUND))
    running.healthy, running.delay_s = True, 0.0
    return running


@pytest.mark.asyncio
async def test_documents_come_back_in_order(server: Server):
    async with RetrievalClient(server.url + "/", top_n=2) as client:
        assert await client.search("King Wu") == [Document("7", '"King"\nKing Wu'), Document("8", "Zhou")]
    assert server.requests == [{"query": "King Wu", "top_n": 2}]


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_busy_or_broken_server_is_asked_again(server: Server, status: int):
    server.answer((status, "busy"), (status, "busy"), (200, FOUND))
    async with RetrievalClient(server.url) as client:
        assert len(await client.search("q")) == 2
    assert len(server.requests) == 3


@pytest.mark.asyncio
async def test_attempts_are_bounded_and_the_last_reason_is_told(server: Server):
    server.answer((503, "the queue is full"))
    async with RetrievalClient(server.url, max_attempts=3) as client:
        with pytest.raises(SearchError, match=r"answered 503: the queue is full \(gave up after 3 attempts\)"):
            await client.search("q")
    assert len(server.requests) == 3


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_mistake_of_ours_is_final_at_once(server: Server, status: int):
    server.answer((status, '{"detail":"Query content cannot be empty"}'))
    async with RetrievalClient(server.url) as client:
        with pytest.raises(SearchError, match=f"answered {status}.*cannot be empty"):
            await client.search("q")
    assert len(server.requests) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "body",
    ["<html>", "", "null", "{}", '{"detail": "x"}', "[1]", '["text"]', "[[]]", '[{"id": "1"}]', '[{"contents": "x"}]',
     "3", '"text"', '[{"id": "1", "contents": null}]', '[{"id": "1", "contents": 3}]'],
)  # fmt: skip
async def test_a_reply_of_another_shape_is_an_error_not_none(server: Server, body: str):
    server.answer((200, body))
    async with RetrievalClient(server.url) as client:
        with pytest.raises(SearchError):
            await client.search("q")
    assert len(server.requests) == 1


@pytest.mark.asyncio
async def test_no_documents_are_a_valid_answer(server: Server):
    server.answer((200, []))
    async with RetrievalClient(server.url) as client:
        assert await client.search("q") == []


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_tried_and_then_told(closed_url: str):
    started = time.perf_counter()
    async with RetrievalClient(closed_url, max_attempts=2) as client:
        with pytest.raises(SearchError, match=r"cannot be reached.*gave up after 2 attempts"):
            await client.search("q")
    assert time.perf_counter() - started < 5


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_is_timed_out(server: Server):
    server.delay_s = 0.6
    async with RetrievalClient(server.url, timeout_s=0.1, max_attempts=2) as client:
        with pytest.raises(SearchError, match=r"ReadTimeout.*gave up after 2 attempts"):
            await client.search("q")


@pytest.mark.asyncio
async def test_many_searches_share_the_connections(server: Server):
    server.delay_s = 0.05
    started = time.perf_counter()
    async with RetrievalClient(server.url, max_connections=64) as client:
        found = await asyncio.gather(*(client.search(f"q{number}") for number in range(64)))
    assert all(len(documents) == 2 for documents in found)
    assert time.perf_counter() - started < 64 * 0.05  # one after another would take that long


def test_the_health_check_names_the_remedy(server: Server, closed_url: str):
    check_server(server.url)
    with pytest.raises(UserError, match=f"no retrieval server answers at search_url={closed_url}.*serving.py"):
        check_server(closed_url)
    server.healthy = False
    with pytest.raises(UserError, match="answered 503, expected 200"):
        check_server(server.url)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://[", "localhost:80", "http://a b", "http://h:x"]
)
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(UserError, match="search_url="):
        check_search_url(url)


def test_the_key_in_the_message_can_be_the_callers():
    with pytest.raises(UserError, match="remote_retriever_url='x' is no http address"):
        check_search_url("x", "remote_retriever_url")
