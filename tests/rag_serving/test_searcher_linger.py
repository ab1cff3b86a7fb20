"""Lingering ends by itself, also in an event loop whose timers fire a little before their time, as uvloop's do."""

import asyncio
from typing import Any

import pytest

from flashrag.document import Document, Hit
from flashrag.retriever.base import Retriever
from rag_serving.metrics import Metrics
from rag_serving.searcher import Searcher
from rag_serving.settings import ServerSettings
from rag_serving.workers import ThreadWorkers


class EarlyLoop(asyncio.SelectorEventLoop):
    """uvloop counts in whole milliseconds: a timer may fire up to one too early."""

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return super().call_at(when - 0.001, callback, *args, context=context)


class Echo(Retriever):
    method, topk, corpus = "echo", 1, ()

    def rank(self, queries, num):  # noqa: ARG002  (the interface)
        return [[Hit(Document(query, query), 1.0)] for query in queries]


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, EarlyLoop])
def test_what_gathered_behind_a_search_is_searched_though_nobody_else_comes(loop_factory):
    settings = ServerSettings(retrieval_method="bm25", index_path="none", corpus_path="none", max_wait_ms=5)

    async def search_all() -> list[str]:
        workers = ThreadWorkers(Echo, 1)
        await workers.start()
        searcher = Searcher(settings, workers, Metrics())
        async with asyncio.timeout(5):
            # The first goes alone; the others are fewer than the four clients that are expected back.
            ranked = await asyncio.gather(*(searcher.rank([query], 1) for query in "abcd"))
        await workers.close()
        return [hits[0].document.id for [hits] in ranked]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(search_all()) == list("abcd")
