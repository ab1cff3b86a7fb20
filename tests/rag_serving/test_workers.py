"""A real BM25 retriever in a process of its own: the same answers, its errors, and its death; and in threads."""

import asyncio
import importlib
import os
import signal
from collections.abc import AsyncIterator
from functools import partial

import psutil
import pytest
import pytest_asyncio

from flashrag.errors import SearchError, UserError
from rag_serving.workers import LARGE_REPLY_BYTES, Facts, ProcessDied, ProcessWorkers, ThreadWorkers

# Processes import the retriever anew: those that can are shared.
pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

# What runs there must be found there by its name: a module on the path, which the test modules are not.
LOADERS = """
import os, signal, threading, time
from flashrag.document import Document, Hit
from flashrag.errors import SearchError, UserError
from flashrag.retriever import Retriever, check_assets, load_retriever_from
from flashrag.retriever.base import PassageCount
from rag_serving.settings import read_settings


def load(config):
    return load_retriever_from(check_assets(read_settings(config)))


def fail_to_load():
    raise UserError("index_path: gone")


def die_while_loading():
    os._exit(7)


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("cannot cross")
        self.lock = threading.Lock()


class Fragile(Retriever):
    method, topk, corpus = "fragile", 3, PassageCount(5)

    def rank(self, queries, num):
        if "raise" in queries:
            raise SearchError("shard 2 is down")
        if "raise what cannot be pickled" in queries:
            raise Unpicklable
        if "large" in queries:
            return [[Hit(Document(str(row), "x" * 1000), 1.0) for row in range(num)]]
        if "die" in queries:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in queries:
            time.sleep(600)
        return [[] for _ in queries]
"""


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaders")
    (folder / "process_loaders.py").write_text(LOADERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("process_loaders")


async def started(load, count: int = 1) -> AsyncIterator[ProcessWorkers]:
    workers = ProcessWorkers(load, count)
    workers.facts = await workers.start()
    yield workers
    await workers.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bm25(site, loaders):
    async for workers in started(partial(loaders.load, site.config), 2):
        yield workers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fragile(loaders):
    async for workers in started(loaders.Fragile):
        yield workers


async def test_they_answer_as_the_retriever_itself(bm25, site, loaders):
    retriever = loaders.load(site.config)
    queries = ["capital of France", "oddity", "nothing of the sort"]
    assert await bm25.rank(queries, 3) == retriever.rank(queries, 3)
    threads = ThreadWorkers(lambda: retriever, 2)
    assert await threads.start() == Facts("bm25", len(retriever.corpus), retriever.topk)
    assert await threads.rank(queries, 3) == retriever.rank(queries, 3)
    await threads.close()


async def test_a_killed_process_loses_nothing(bm25):
    expected = await bm25.rank(["capital"], 2)
    first = bm25._process.pid
    answered, killed = [0, 0], asyncio.Event()

    async def ask(number: int) -> None:
        while not killed.is_set() or answered[number] < 20:
            assert await bm25.rank(["capital"], 2) == expected
            answered[number] += 1

    asking = [asyncio.create_task(ask(number)) for number in range(2)]
    while min(answered) < 5:
        await asyncio.sleep(0)
    os.kill(first, signal.SIGKILL)
    answered[:] = [0, 0]
    killed.set()
    await asyncio.gather(*asking)
    assert bm25._process.pid != first


async def test_the_process_says_what_it_loaded(fragile):
    assert fragile.facts == Facts("fragile", 5, 3)


async def test_a_search_that_raises_leaves_the_process_alive(fragile):
    pid = fragile._process.pid
    for _ in range(3):
        with pytest.raises(SearchError, match="shard 2 is down") as caught:
            await fragile.rank(["raise"], 1)
        assert "in the search process:\nTraceback" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Unpicklable: cannot cross"):
        await fragile.rank(["raise what cannot be pickled"], 1)
    assert await fragile.rank(["fine"], 1) == [[]]
    assert fragile._process.pid == pid


async def test_a_large_answer_comes_over_whole(fragile):
    (hits,) = await fragile.rank(["large"], 3 * LARGE_REPLY_BYTES // 1000)
    assert [hit.document.id for hit in hits] == [str(row) for row in range(3 * LARGE_REPLY_BYTES // 1000)]


async def test_a_cancelled_search_leaves_no_reply_for_the_next(fragile):
    """Its reply is large, so that it is still on its way; the next search must not read it as its own."""
    searches = [asyncio.create_task(fragile.rank(["large"], 5000)) for _ in range(fragile.count)]
    await asyncio.sleep(0.001)
    for search in searches:
        search.cancel()
    await asyncio.gather(*searches, return_exceptions=True)
    assert await asyncio.gather(*(fragile.rank(["a", "b"], 3) for _ in searches)) == [[[], []]] * fragile.count


async def test_queries_that_kill_it_every_time_are_given_up(fragile):
    with pytest.raises(ProcessDied, match="3 times over the same 1 queries"):
        await fragile.rank(["die"], 1)
    assert await fragile.rank(["fine"], 1) == [[]]


async def test_it_says_why_it_could_not_load(loaders):
    with pytest.raises(UserError, match="index_path: gone"):
        await ProcessWorkers(loaders.fail_to_load, 1).start()
    with pytest.raises(ProcessDied, match="exit code 7 while it loaded"):
        await ProcessWorkers(loaders.die_while_loading, 1).start()


async def test_closing_ends_a_search_that_hangs_and_leaves_nothing(loaders):
    workers = ProcessWorkers(loaders.Fragile, 2)
    await workers.start()
    pid, hanging = workers._process.pid, asyncio.create_task(workers.rank(["hang"], 1))
    assert await workers.rank(["fine"], 1) == [[]]  # the other thread; it hangs meanwhile
    await workers.close()
    with pytest.raises(ProcessDied, match="was closed"):
        await hanging
    assert workers._process.pid == pid
    assert not psutil.pid_exists(pid)
    with pytest.raises(ProcessDied, match="was closed"):
        await workers.rank(["fine"], 1)
