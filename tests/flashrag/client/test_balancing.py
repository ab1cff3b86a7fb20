"""The client with several servers: real uvicorn servers that refuse, hang, fail, and come back on the same port."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from flashrag.client import RetrievalClient
from flashrag.document import Document
from flashrag.errors import SearchError
from tests.ports import held_port


class Replica:
    """A retrieval server whose documents carry its name; it can stop, and start again on the same port."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{self.port}"
        self.server: uvicorn.Server | None = None
        self.reset()

    def reset(self) -> None:
        self.queries: list[str] = []
        self.probes = 0
        self.status = 200
        self.healthy = True
        self.headers: dict[str, str] = {}
        self.delay_s = 0.0

    def start(self) -> "Replica":
        config = uvicorn.Config(self.app(), port=self.port, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def ask_to_stop(self) -> None:
        if self.server is not None:
            self.server.should_exit = self.server.force_exit = True

    def stop(self) -> None:
        self.ask_to_stop()
        self.thread.join()
        self.server = None

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/search")
        async def search(request: Request) -> Response:
            query = (await request.json())["query"]
            self.queries.append(query)
            await asyncio.sleep(self.delay_s)
            if self.status != 200:
                return Response("not now", self.status, self.headers)
            return Response(f'[{{"id": "{self.name}", "contents": "{query}"}}]', media_type="application/json")

        @app.get("/health")
        async def health() -> Response:
            self.probes += 1
            return Response(status_code=200 if self.healthy else 503)

        return app


@pytest.fixture(scope="module")
def three() -> Iterator[list[Replica]]:
    with ExitStack() as ports:
        some = [Replica(name, ports.enter_context(held_port())) for name in "abc"]
        yield some
        for replica in some:
            replica.ask_to_stop()
        for replica in some:
            replica.stop()


@pytest.fixture
def replicas(three: list[Replica]) -> list[Replica]:
    """Three servers that run and have seen nothing yet."""
    for replica in three:
        replica.reset()
        if replica.server is None:
            replica.start()
    return three


def urls(replicas: list[Replica]) -> list[str]:
    return [replica.url for replica in replicas]


async def search_many(client: RetrievalClient, count: int) -> Counter[str]:
    """How many of `count` searches at once each server answered; every answer belongs to its query."""
    found = await asyncio.gather(*(client.search(f"q{number}") for number in range(count)))
    assert [documents[0].contents for documents in found] == [f"q{number}" for number in range(count)]
    return Counter(documents[0].id for documents in found)


@pytest.mark.asyncio
async def test_searches_one_after_the_other_take_turns(replicas: list[Replica]):
    async with RetrievalClient(",".join(urls(replicas))) as client:
        assert [(await client.search("q"))[0].id for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


@pytest.mark.asyncio
async def test_searches_at_once_are_spread_evenly(replicas: list[Replica]):
    async with RetrievalClient(urls(replicas)) as client:
        assert await search_many(client, 30) == {"a": 10, "b": 10, "c": 10}


@pytest.mark.asyncio
async def test_a_slow_server_gets_less(replicas: list[Replica]):
    replicas[0].delay_s = 0.5
    async with RetrievalClient(urls(replicas)) as client, asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(client.search(f"q{number}"))
            await asyncio.sleep(0.01)
    counts = [len(replica.queries) for replica in replicas]
    assert counts[0] < 15 and sum(counts) == 60  # an equal share would be 20


@pytest.mark.asyncio
@pytest.mark.parametrize("dead", [{0}, {1, 2}])
async def test_while_one_server_answers_no_search_fails(replicas: list[Replica], dead: set[int]):
    for number in dead:
        replicas[number].stop()
    # One attempt: the other servers are part of it.
    async with RetrievalClient(urls(replicas), max_attempts=1) as client:
        counts = await search_many(client, 40)
    assert set(counts) == {replica.name for number, replica in enumerate(replicas) if number not in dead}


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [429, 500, 503, 504])
async def test_a_failing_server_is_left_for_the_others_at_once(replicas: list[Replica], status: int):
    replicas[0].status, replicas[0].headers = status, {"Retry-After": "20"}
    started = time.monotonic()
    async with RetrievalClient(urls(replicas), max_attempts=1) as client:
        counts = await search_many(client, 30)
    assert set(counts) == {"b", "c"}
    assert time.monotonic() - started < 5  # nobody waited for the Retry-After of the one


@pytest.mark.asyncio
async def test_a_hanging_server_leaves_time_for_the_others(replicas: list[Replica]):
    for replica in replicas[:2]:
        replica.delay_s = 30.0
    async with RetrievalClient(urls(replicas), timeout_s=60.0, deadline_s=3.0, max_attempts=1) as client:
        # At worst a third of the deadline for the first, half of the rest for the second.
        assert (await client.search("first"))[0].id == "c"
        for replica in replicas[:2]:
            replica.queries.clear()
        started = time.monotonic()
        await search_many(client, 20)
        assert time.monotonic() - started < 2.9  # both are set aside; at most one of these searches looks at one again
    assert len(replicas[0].queries) + len(replicas[1].queries) <= 2


@pytest.mark.asyncio
async def test_a_server_set_aside_is_asked_for_its_health_before_a_query(replicas: list[Replica]):
    replicas[0].status = 503
    replicas[0].healthy = False
    async with RetrievalClient(urls(replicas)) as client:
        await search_many(client, 3)
        assert (len(replicas[0].queries), replicas[0].probes) == (1, 0)
        await asyncio.sleep(0.6)  # set aside for 0.5 s after the first failure
        await search_many(client, 20)
        assert (len(replicas[0].queries), replicas[0].probes) == (1, 1)  # one looked, the others did not follow
        await search_many(client, 20)
        assert (len(replicas[0].queries), replicas[0].probes) == (1, 1)  # twice as long now
        replicas[0].healthy, replicas[0].status = True, 200
        await asyncio.sleep(1.1)
        await search_many(client, 3)
        assert (await search_many(client, 30))["a"] == 10


@pytest.mark.asyncio
async def test_a_server_that_dies_and_comes_back_loses_no_search(replicas: list[Replica]):
    pair = replicas[:2]
    finished = asyncio.Event()

    async def keep_asking(client: RetrievalClient) -> int:
        count = 0
        while not finished.is_set():
            await search_many(client, 4)
            count += 4
        return count

    async with RetrievalClient(urls(pair)) as client:
        asking = [asyncio.create_task(keep_asking(client)) for _ in range(4)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(pair[0].stop)
        await asyncio.sleep(0.3)
        pair[0].queries.clear()
        await asyncio.to_thread(pair[0].start)
        deadline = time.monotonic() + 10
        while not pair[0].queries and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        finished.set()
        assert all([await task > 0 for task in asking])
    assert pair[0].queries  # it serves again


@pytest.mark.asyncio
async def test_the_only_server_may_restart_while_searches_wait(replicas: list[Replica]):
    only = replicas[0]
    only.stop()
    async with RetrievalClient(only.url) as client:
        waiting = asyncio.create_task(search_many(client, 10))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(only.start)
        assert await waiting == {"a": 10}


@pytest.mark.asyncio
async def test_when_all_fail_each_is_named(replicas: list[Replica]):
    replicas[0].status, replicas[1].status = 500, 503
    replicas[2].stop()
    async with RetrievalClient(urls(replicas), max_attempts=2) as client:
        with pytest.raises(SearchError) as caught:
            await client.search("q")
    for part in ("answered 500", "answered 503", f"{replicas[2].url}/search cannot be reached", "after 2 attempts"):
        assert part in str(caught.value)


def test_one_client_serves_several_event_loops(replicas: list[Replica]):
    client = RetrievalClient(urls(replicas))

    async def use() -> list[Document]:
        async with client:
            await search_many(client, 6)
            return await client.search("q")

    found: list[list[Document]] = [asyncio.run(use()) for _ in range(2)]
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(use()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [documents[0].contents for documents in found] == ["q"] * 4
