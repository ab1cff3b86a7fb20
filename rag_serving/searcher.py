"""The seam between the routes and the retriever: searches run here, off the event loop.

`num_retriever` threads share one index, one corpus and one encoder (the encoder takes one batch at a time, faiss and
bm25s search in parallel). Does not cover: merging requests into batches, a bounded queue, caching: they belong here.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from flashrag.document import Hit
from flashrag.retriever.base import Retriever


class Searcher:
    """Asynchronous searches on a pool of threads; use it as an async context manager."""

    def __init__(self, retriever: Retriever, num_retriever: int) -> None:
        self.retriever = retriever
        self.num_retriever = num_retriever
        self._waiting_or_running = 0

    @property
    def available(self) -> int:
        """Threads with nothing to do."""
        return max(0, self.num_retriever - self._waiting_or_running)

    async def __aenter__(self) -> Self:
        self._pool = ThreadPoolExecutor(max_workers=self.num_retriever, thread_name_prefix="retriever")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        """The best `num` hits of each query, in the order of the queries."""
        future = self._pool.submit(self.retriever.rank, list(queries), num)
        self._waiting_or_running += 1
        loop = asyncio.get_running_loop()
        # Counted down when the thread is done, not when the caller goes away: its thread stays busy.
        future.add_done_callback(lambda _: _call_soon(loop, self._one_done))
        return await asyncio.wrap_future(future)

    def _one_done(self) -> None:
        self._waiting_or_running -= 1


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
