"""Who gets in, with how large a body, and for how long; over an engine that can be held."""

import asyncio
import json

import httpx
import pytest

from flashrag.config import TOKEN_VARIABLE
from rag_serving.gate import GUARDED_ROUTES, SEARCH_ROUTES
from rag_serving.service import Status

BODY = {
    "/search": {"query": "a"},
    "/batch_search": {"query": ["a"]},
    "/retrieve": {"queries": ["a"]},
    "/queries": {"queries": ["a"]},
}


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_every_search_route_is_behind_the_gate(openapi):
    assert {path for path, item in openapi["paths"].items() if "post" in item} == SEARCH_ROUTES == set(BODY)


@pytest.mark.asyncio
async def test_the_token_guards_searches_and_metrics_and_nothing_else(serve, engine, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    async with serve(engine) as client:

        async def status(path: str, **headers: str) -> int:
            method = "POST" if path in SEARCH_ROUTES else "GET"
            return (await client.request(method, path, json=BODY.get(path), headers=headers)).status_code

        for path in sorted(GUARDED_ROUTES):
            for wrong in ("", "s3cret", "Bearer", "Bearer wrong", "Bearer s3cret ", "Basic s3cret", "Bearer s3cre\xe9"):
                assert await status(path, authorization=wrong.encode("latin-1")) == 401, (path, wrong)
            assert await status(path, authorization="Bearer s3cret") == 200
        assert {await status(path) for path in ("/", "/health", "/healthz", "/docs", "/openapi.json")} == {200}
        refused = await client.post("/search", content=b"{")  # the token comes before the body
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json() == {"detail": "give the header Authorization: Bearer TOKEN"}


@pytest.mark.asyncio
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413_however_it_is_sent(serve, engine, chunked):
    async def pieces(body: bytes):
        for start in range(0, len(body), 10):
            yield body[start : start + 10]

    async with serve(engine, max_body_bytes=100) as client:

        async def post(size: int) -> httpx.Response:
            body = json.dumps({"query": "a"}).ljust(size).encode()
            headers = {"content-type": "application/json"}
            return await client.post("/search", content=pieces(body) if chunked else body, headers=headers)

        assert (await post(100)).status_code == 200
        answer = await post(101)
        detail = {"detail": "the body is larger than 100 bytes (max_body_bytes)"}
        assert (answer.status_code, answer.json()) == (413, detail)


@pytest.mark.asyncio
@pytest.mark.parametrize("asked_s", ["0.05", "0", "-1", "5e-2"])
async def test_a_missed_deadline_is_504_and_no_work_is_done_for_it(serve, engine, asked_s):
    engine.proceed.clear()
    async with serve(engine, num_retriever=1) as client:
        held = asyncio.create_task(client.post("/search", json={"query": "held"}))
        await until(lambda: engine.batches)
        answer = await client.post("/search", json={"query": "late"}, headers={"X-Request-Timeout": asked_s})
        assert answer.status_code == 504
        assert answer.json()["detail"].startswith("not answered within ")
        assert client.service.searcher.waiting == 0
        engine.proceed.set()
        assert (await held).status_code == 200
        assert engine.searched == ["held"]
        assert 'rag_refused_total{reason="deadline"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.asyncio
async def test_the_servers_own_deadline_cannot_be_lengthened(serve, engine):
    engine.proceed.clear()
    async with serve(engine, request_timeout_s=0.05) as client:
        answer = await client.post("/search", json={"query": "a"}, headers={"X-Request-Timeout": "9"})
        assert (answer.status_code, answer.json()) == (504, {"detail": "not answered within 0.05 s"})
        engine.proceed.set()


@pytest.mark.asyncio
@pytest.mark.parametrize("asked_s", ["soon", "nan", ""])
async def test_a_deadline_that_is_no_number_is_422(serve, engine, asked_s):
    async with serve(engine) as client:
        answer = await client.post("/search", json={"query": "a"}, headers={"X-Request-Timeout": asked_s})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["header", "X-Request-Timeout"]


@pytest.mark.asyncio
@pytest.mark.parametrize(("status", "reason"), [(Status.LOADING, "loading"), (Status.DRAINING, "draining")])
async def test_no_search_while_loading_or_draining(serve, engine, status, reason):
    async with serve(engine) as client:
        client.service.status = status
        for path, body in BODY.items():
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()) == (503, {"detail": f"the server is {reason}"})
            assert int(answer.headers["retry-after"]) >= 1
        for path in ("/health", "/healthz"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (503, {"status": reason})
        assert f'rag_refused_total{{reason="{reason}"}} 4.0' in (await client.get("/metrics")).text


@pytest.mark.asyncio
async def test_a_full_queue_is_429_and_says_when_to_come_back(serve, engine):
    engine.proceed.clear()
    async with serve(engine, num_retriever=1, max_queue_queries=2, max_batch_queries=2) as client:
        held = asyncio.create_task(client.post("/search", json={"query": "held"}))
        await until(lambda: engine.batches)
        waiting = asyncio.create_task(client.post("/batch_search", json={"query": ["a", "b"]}))
        await until(lambda: client.service.searcher.waiting == 2)
        answer = await client.post("/search", json={"query": "c"})
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["detail"].startswith("2 queries wait and 1 more do not fit")
        metrics = (await client.get("/metrics")).text
        assert {'rag_refused_total{reason="queue_full"} 1.0', "rag_queue_queries 2.0"} <= set(metrics.splitlines())
        engine.proceed.set()
        assert [(await task).status_code for task in (held, waiting)] == [200, 200]


@pytest.mark.asyncio
async def test_a_client_that_goes_away_is_not_worked_for(serve, engine):
    """By the ASGI messages that uvicorn sends; test_serving.py does the same over a socket."""
    engine.proceed.clear()
    async with serve(engine, num_retriever=1) as client:
        held = asyncio.create_task(client.post("/search", json={"query": "held"}))
        await until(lambda: engine.batches)
        closed, messages = asyncio.Event(), [{"type": "http.request", "body": b'{"query": "gone"}'}]

        async def receive():
            if messages:
                return messages.pop()
            await closed.wait()
            return {"type": "http.disconnect"}

        async def send(_):
            pass

        scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b"", "http_version": "1.1"}
        headers = [(b"content-type", b"application/json")]
        request = asyncio.create_task(client.app({**scope, "headers": headers}, receive, send))
        await until(lambda: client.service.searcher.waiting == 1)
        closed.set()
        await request
        assert (client.service.searcher.waiting, client.service.in_hand) == (0, 1)
        engine.proceed.set()
        await held
        assert engine.searched == ["held"]
        lines = (await client.get("/metrics")).text.splitlines()
        assert {'rag_refused_total{reason="gone"} 1.0', 'rag_requests_total{route="/search",status="499"} 1.0'} <= set(
            lines
        )


@pytest.mark.asyncio
async def test_answers_over_the_limit_of_documents_are_422(serve, engine):
    async with serve(engine, max_documents=10) as client:
        assert (await client.post("/batch_search", json={"query": ["a", "b"], "top_n": 5})).status_code == 200
        answer = await client.post("/batch_search", json={"query": ["a", "b"], "top_n": 6})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["msg"] == "2 queries times 6 documents are more than 10 (max_documents)"


@pytest.mark.asyncio
async def test_queries_are_logged_only_where_asked_for(serve, engine, caplog):
    for asked in (False, True):
        async with serve(engine, log_queries=asked) as client:
            await client.post("/search", json={"query": "private words"})
            await client.post("/search", json={"query": "boom"})
        assert ("private words" in caplog.text) is asked
