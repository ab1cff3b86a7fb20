"""Outages of a real retrieval server: killed, started again on the same port, or not."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Response

from flashrag.client import RetrievalClient
from flashrag.document import Document
from flashrag.errors import SearchError
from verl_search.rollout.outage import EpisodeClock, Outage
from verl_search.trainer.stopping import NOTICE, StopTraining


def retrieval_app() -> FastAPI:
    """Healthy, finds a document that names the query, and fails on "broken"."""
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response("")

    @app.post("/search")
    def search(body: dict[str, object]) -> Response:
        if body["query"] == "broken":
            return Response('{"detail": "of no use"}', status_code=400)
        return Response(f'[{{"id": "1", "contents": "about {body["query"]}"}}]', media_type="application/json")

    return app


@asynccontextmanager
async def served(port: int) -> AsyncIterator[None]:
    server = uvicorn.Server(uvicorn.Config(retrieval_app(), port=port, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await task


def run_with_client(port: int, max_outage_s: float, work: Callable[[RetrievalClient, Outage], Awaitable[None]]) -> None:
    async def run() -> None:
        url = f"http://127.0.0.1:{port}"
        async with RetrievalClient(url, top_n=1, max_attempts=1) as client:
            await work(client, Outage(url, max_outage_s))

    asyncio.run(run())


def test_searches_wait_for_the_server_and_go_on(closed_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []

    async def work(client: RetrievalClient, outage: Outage) -> None:
        clocks = [EpisodeClock() for _ in range(20)]
        searches = [
            asyncio.create_task(outage.wait_out(lambda i=i: client.search(f"q{i}"), clock))
            for i, clock in enumerate(clocks)
        ]
        while "20 searches wait" not in "".join(printed):
            await asyncio.sleep(0.05)
            printed.append(capsys.readouterr().out)
        assert not any(search.done() for search in searches)
        before = [clock() for clock in clocks]
        await asyncio.sleep(0.2)
        assert [clock() for clock in clocks] == before  # they stand still
        async with served(closed_port):
            found = await asyncio.gather(*searches)
        assert found == [[Document("1", f"about q{i}")] for i in range(20)]
        # The 0.2 s of the outage, at least, are not on the clocks of the episodes; those of the real search are.
        assert all(time.monotonic() - clock() > 0.2 for clock in clocks)
        first = clocks[0]()
        await asyncio.sleep(0.05)
        assert clocks[0]() - first >= 0.05  # they run again

    run_with_client(closed_port, 60.0, work)
    lines = ("".join(printed) + capsys.readouterr().out).splitlines()
    assert all(line.startswith(NOTICE) for line in lines)
    assert "no retrieval server answers" in lines[0]
    assert "is healthy again: 20 searches continue" in lines[-1]
    assert len(lines) < 10  # one watch for all of them, and it backs off


def test_the_server_dies_between_two_searches_and_comes_back(closed_port: int) -> None:
    async def work(client: RetrievalClient, outage: Outage) -> None:
        clock = EpisodeClock()
        async with served(closed_port):
            assert await outage.wait_out(lambda: client.search("one"), clock) == [Document("1", "about one")]
        second = asyncio.create_task(outage.wait_out(lambda: client.search("two"), clock))
        await asyncio.sleep(0.3)
        async with served(closed_port):
            assert await second == [Document("1", "about two")]

    run_with_client(closed_port, 60.0, work)


def test_a_search_that_fails_on_a_healthy_server_is_its_own_failure(
    closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(client: RetrievalClient, outage: Outage) -> None:
        clock = EpisodeClock()
        async with served(closed_port):
            with pytest.raises(SearchError, match="of no use"):
                await outage.wait_out(lambda: client.search("broken"), clock)
        assert time.monotonic() - clock() < 1e-3  # its time counts

    run_with_client(closed_port, 60.0, work)
    assert capsys.readouterr().out == ""


def test_an_outage_that_lasts_too_long_stops_the_run_and_no_sooner(closed_port: int) -> None:
    async def work(client: RetrievalClient, outage: Outage) -> None:
        began = time.monotonic()
        searches = [outage.wait_out(lambda: client.search("q"), EpisodeClock()) for _ in range(3)]
        ended = await asyncio.gather(*searches, return_exceptions=True)
        # The back-off alone would look after 1.5 s for the last time: its next look would come after 3.5 s.
        assert 2.0 <= time.monotonic() - began < 3.5
        assert all(isinstance(error, StopTraining) for error in ended)
        (reason,) = {str(error) for error in ended}
        assert "no retrieval server was healthy for 2 s (search.max_outage_s)" in reason

    run_with_client(closed_port, 2.0, work)


def test_a_cancelled_search_leaves_the_others_waiting(closed_port: int) -> None:
    async def work(client: RetrievalClient, outage: Outage) -> None:
        gone, stays = (
            asyncio.create_task(outage.wait_out(lambda: client.search("q"), EpisodeClock())) for _ in range(2)
        )
        await asyncio.sleep(0.3)
        gone.cancel()
        async with served(closed_port):
            assert await stays == [Document("1", "about q")]

    run_with_client(closed_port, 60.0, work)
