"""The retrieval client against a real HTTP server whose answers are written by hand."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers

from flashrag.client import RetrievalClient
from flashrag.client.client import BATCH_QUERIES
from flashrag.document import Document, Hit
from flashrag.errors import SearchError, UserError

FOUND = [{"id": "7", "contents": '"King"\nKing Wu'}, {"id": 8, "contents": "Zhou"}]


class Server:
    """Answers /search with the scripted (status, body) pairs, the last one for ever after."""

    def __init__(self) -> None:
        self.script: list[tuple[int, str]] = []
        self.requests: list[dict] = []
        self.headers: list[Headers] = []
        self.answer_headers: dict[str, str] = {}
        self.most_documents = 1000
        self.delay_s = 0.0
        self.url = ""

    def answer(self, *script: tuple[int, object]) -> None:
        self.requests.clear()
        self.headers.clear()
        self.script = [(status, body if isinstance(body, str) else json.dumps(body)) for status, body in script]

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/search")
        async def search(request: Request) -> Response:
            self.requests.append(await request.json())
            self.headers.append(request.headers)
            status, body = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            await asyncio.sleep(self.delay_s)
            return Response(body, status, self.answer_headers, media_type="application/json")

        @app.post("/batch_search")
        async def batch_search(request: Request) -> Response:
            """Each query is its own document, scored by its length, after the shortest time for the last part."""
            body = await request.json()
            self.requests.append(body)
            await asyncio.sleep(0.1 / len(self.requests))
            documents = [[{"id": query, "contents": query}] for query in body["query"]]
            scores = [[len(query)] for query in body["query"]]
            return JSONResponse([documents[: self.most_documents], scores])

        return app


@pytest.fixture(scope="module")
def running(serve: Callable[[Any], str]) -> Server:
    server = Server()
    server.url = serve(server.app())
    return server


@pytest.fixture
def server(running: Server) -> Server:
    running.answer((200, FOUND))
    running.answer_headers, running.most_documents, running.delay_s = {}, 1000, 0.0
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
        with pytest.raises(
            SearchError, match=r"answered 503: the queue is full \(gave up after 3 attempts, \d+\.\d s\)"
        ):
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
     "3", '"text"', "[" * 100_000, '[{"id": "1", "con', '[{"id": "1", "contents": null}]',
     '[{"id": "1", "contents": 3}]'],
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
        with pytest.raises(SearchError, match=r"did not answer within 0.1 s \(gave up after 2 attempts"):
            await client.search("q")


@pytest.mark.asyncio
async def test_searches_given_up_leave_their_connections_to_others(server: Server):
    server.delay_s = 1.5
    # Long enough that none times out before it is cancelled, on a busy machine, too.
    async with RetrievalClient(server.url, timeout_s=1.0, max_attempts=1, max_connections=2) as client:
        failed = await asyncio.gather(*(client.search("q") for _ in range(20)), return_exceptions=True)
        cancelled = [asyncio.create_task(client.search("q")) for _ in range(20)]
        await asyncio.sleep(0.05)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        server.delay_s = 0.0
        assert all(isinstance(error, SearchError) for error in failed)
        assert all(task.cancelled() for task in cancelled)
        assert [len(await client.search("q")) for _ in range(5)] == [2] * 5


@pytest.mark.asyncio
async def test_many_searches_share_the_connections(server: Server):
    server.delay_s = 0.05
    started = time.perf_counter()
    async with RetrievalClient(server.url, max_connections=64) as client:
        found = await asyncio.gather(*(client.search(f"q{number}") for number in range(64)))
    assert all(len(documents) == 2 for documents in found)
    assert time.perf_counter() - started < 64 * 0.05  # one after another would take that long


@pytest.mark.asyncio
async def test_scores_come_with_their_documents(server: Server):
    server.answer((200, [FOUND, [0.75, -1]]))
    async with RetrievalClient(server.url, top_n=2) as client:
        hits = await client.search_scored("q")
        assert hits == [Hit(Document("7", '"King"\nKing Wu'), 0.75), Hit(Document("8", "Zhou"), -1.0)]
        assert await client.search_scored("q", top_n=3) == hits
    assert [request["top_n"] for request in server.requests] == [2, 3]


@pytest.mark.asyncio
async def test_a_batch_is_sent_in_parts_and_comes_back_in_order(server: Server):
    server.requests.clear()
    queries = ["q" * (1 + number % 7) + str(number) for number in range(2 * BATCH_QUERIES + 1)]
    async with RetrievalClient(server.url) as client:
        ranked = await client.batch_search(queries, top_n=4)
    assert ranked == [[Hit(Document(query, query), float(len(query)))] for query in queries]
    assert sorted(len(request["query"]) for request in server.requests) == [1, BATCH_QUERIES, BATCH_QUERIES]
    assert {(request["top_n"], request["return_score"]) for request in server.requests} == {(4, True)}


@pytest.mark.asyncio
async def test_an_empty_batch_asks_nothing(server: Server):
    server.requests.clear()
    async with RetrievalClient(server.url) as client:
        assert await client.batch_search([]) == []
    assert server.requests == []


@pytest.mark.asyncio
async def test_a_batch_of_another_length_is_an_error(server: Server):
    server.most_documents = BATCH_QUERIES - 1
    async with RetrievalClient(server.url) as client:
        with pytest.raises(SearchError, match="expected documents and scores of 64 queries, got 63 and 64"):
            await client.batch_search([f"q{number}" for number in range(BATCH_QUERIES + 3)])


@pytest.mark.asyncio
async def test_retry_after_is_the_least_wait(server: Server):
    server.answer((429, "full"), (200, FOUND))
    server.answer_headers = {"Retry-After": "1"}
    started = time.monotonic()
    async with RetrievalClient(server.url) as client:
        await client.search("q")
    assert time.monotonic() - started >= 1.0  # the first back-off alone is at most 0.25 s


@pytest.mark.asyncio
async def test_a_retry_after_beyond_the_deadline_is_not_waited_for(server: Server):
    server.answer((429, "full"))
    server.answer_headers = {"Retry-After": "3600"}  # taken for 30 s
    started = time.monotonic()
    async with RetrievalClient(server.url, deadline_s=20.0) as client:
        with pytest.raises(SearchError, match=r"answered 429: full \(gave up after 1 attempts"):
            await client.search("q")
    assert time.monotonic() - started < 5


@pytest.mark.asyncio
async def test_the_deadline_holds_over_all_attempts(server: Server):
    server.delay_s = 0.5
    started = time.monotonic()
    async with RetrievalClient(server.url, timeout_s=0.2, deadline_s=1.0, max_attempts=1000) as client:
        with pytest.raises(SearchError, match="did not answer within"):
            await client.search("q")
    assert 0.2 <= time.monotonic() - started < 2.5


@pytest.mark.asyncio
async def test_the_server_is_told_how_long_the_caller_waits(server: Server):
    async with RetrievalClient(server.url, timeout_s=7.0, deadline_s=50.0) as client:
        await client.search("q")
    async with RetrievalClient(server.url, timeout_s=7.0, deadline_s=3.0) as client:
        await client.search("q")
    first, second = (float(headers["x-request-timeout"]) for headers in server.headers)
    assert 6.0 < first <= 7.0 and 2.0 < second <= 3.0


@pytest.mark.asyncio
async def test_the_token_comes_from_the_environment_or_the_caller(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RESEARCH_SERVER_TOKEN", raising=False)
    async with RetrievalClient(server.url) as client:
        await client.search("q")
    monkeypatch.setenv("RESEARCH_SERVER_TOKEN", "from-env")
    async with RetrievalClient(server.url) as client:
        await client.search("q")
    async with RetrievalClient(server.url, token="given") as client:
        await client.search("q")
    assert [headers.get("authorization") for headers in server.headers] == [None, "Bearer from-env", "Bearer given"]


@pytest.mark.asyncio
async def test_no_error_shows_the_token(server: Server, closed_url: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(0)
    server.answer((401, '{"detail": "wrong token"}'))
    async with RetrievalClient(server.url, token="s3cret") as client:
        with pytest.raises(SearchError, match=r"answered 401.*RESEARCH_SERVER_TOKEN must hold") as refused:
            await client.search("q")
    async with RetrievalClient(closed_url, token="s3cret", max_attempts=1) as client:
        with pytest.raises(SearchError) as unreachable:
            await client.search("q")
    with pytest.raises(UserError, match=r"RESEARCH_SERVER_TOKEN\) holds a space") as unusable:
        RetrievalClient(server.url, token="s3cret\n")
    assert "s3cret" not in f"{refused.value}{unreachable.value}{unusable.value}{caplog.text}"


@pytest.mark.asyncio
async def test_half_a_surrogate_pair_is_the_servers_to_refuse(server: Server):
    server.answer((422, "no text"))
    async with RetrievalClient(server.url) as client:
        with pytest.raises(SearchError, match="answered 422"):
            await client.search("half \ud83d")
    assert server.requests == [{"query": "half \ud83d", "top_n": 5}]


DOCUMENTS_AND_MORE = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nContent-Type: application/json\r\n\r\n[{"id": "1", "con'
)


@pytest.mark.asyncio
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", b"no HTTP at all\r\n\r\n", DOCUMENTS_AND_MORE])
async def test_a_connection_that_breaks_off_is_tried_again(sent: bytes):
    good = json.dumps(FOUND).encode()
    answers = [sent, sent, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(good), good)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answers.pop(0))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as faulty:
        url = f"http://127.0.0.1:{faulty.sockets[0].getsockname()[1]}"
        async with RetrievalClient(url) as client:
            assert len(await client.search("q")) == 2
    assert answers == []


@pytest.mark.asyncio
async def test_an_answer_that_drips_is_timed_out():
    left = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        left.set()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as faulty:
        url = f"http://127.0.0.1:{faulty.sockets[0].getsockname()[1]}"
        started = time.monotonic()
        async with RetrievalClient(url, timeout_s=0.4, max_attempts=1) as client:
            with pytest.raises(SearchError, match=r"did not answer within 0\.4 s"):
                await client.search("q")
        assert time.monotonic() - started < 3
        await left.wait()  # the client hung up
