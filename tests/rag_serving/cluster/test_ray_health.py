"""What a replica says about itself when Ray asks; the replica is made here, without Ray."""

import asyncio
import threading
import warnings
from contextlib import asynccontextmanager

import pytest

from rag_serving.searcher import SearchFailed
from rag_serving.settings import ServerSettings, read_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, when it is imported
    from rag_serving.cluster.ray_app import Replica

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def replica(settings: ServerSettings):
    kind = Replica.func_or_class.__bases__[0]  # our class, under Ray's wrapper
    made = kind.__new__(kind)
    await made.__init__(settings, 1, False, [])
    app = made.__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        await app.state.service.loaded
        yield made


@pytest.fixture
def settings(site):
    return read_settings(site.with_config(request_timeout_s=0.2, max_queue_queries=1024))


async def test_a_replica_that_searches_is_healthy(settings):
    async with replica(settings) as made:
        for _ in range(3):
            await made.check_health()


async def test_a_replica_whose_searches_fail_is_not(settings, monkeypatch):
    async with replica(settings) as made:
        monkeypatch.setattr(made._retriever, "rank", lambda _queries, _num: 1 / 0)
        with pytest.raises(SearchFailed, match="ZeroDivisionError"):
            await made.check_health()


async def test_a_replica_whose_search_hangs_is_not_once_nothing_ends(settings, monkeypatch):
    release = threading.Event()
    async with replica(settings) as made:
        rank = made._retriever.rank

        def hangs(queries, num):
            release.wait()
            return rank(queries, num)

        monkeypatch.setattr(made._retriever, "rank", hangs)
        searcher = made._app.state.service.searcher
        stuck = asyncio.create_task(searcher.rank(["stuck"], 1))
        await asyncio.sleep(0)
        await made.check_health()  # a long search is no hang: the first check only looks
        with pytest.raises(RuntimeError, match="no search has ended since the last check"):
            await made.check_health()
        full = asyncio.create_task(searcher.rank([f"query {number}" for number in range(1024)], 1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="no search has ended since the last check"):
            await made.check_health()
        release.set()
        await asyncio.gather(stuck, full)
        await made.check_health()
