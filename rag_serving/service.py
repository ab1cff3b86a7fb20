"""What one server is doing: loading, healthy, draining; and the searcher once there is one.

Loading happens in a thread of its own, so that the port answers meanwhile.
"""

import asyncio
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Self

from flashrag.retriever import Retriever
from rag_serving.metrics import Metrics
from rag_serving.searcher import Searcher
from rag_serving.settings import ServerSettings


class Status(StrEnum):
    LOADING = "loading"
    HEALTHY = "healthy"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """Use it as an async context manager; `loaded` holds the retriever, or the error of `load`."""

    def __init__(
        self, settings: ServerSettings, load: Callable[[], Retriever], num_retriever: int, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.num_retriever = num_retriever
        self.metrics = metrics
        self.status = Status.LOADING
        self.in_hand = 0  # search requests that are being answered
        self._load = load
        self._searcher: Searcher | None = None

    @property
    def searcher(self) -> Searcher:
        assert self._searcher is not None, "the gate lets searches in once the retriever is loaded"
        return self._searcher

    @property
    def busy(self) -> bool:
        """Whether a thread loads or searches."""
        return not self.loaded.done() or (self._searcher is not None and self._searcher.available < self.num_retriever)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[Retriever] = loop.create_future()
        # A daemon: a signal ends the process also while it loads.
        threading.Thread(target=self._load_in_thread, args=(loop,), name="load", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._searcher is not None:
            self._searcher.close()
            self._searcher.retriever.close()

    def drain(self) -> None:
        """Refuse new searches from now on."""
        self.status = Status.DRAINING

    def _load_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        retriever = error = None
        try:
            retriever = self._load()
            retriever.rank(["warm-up"], 1)  # the first search pays for lazy set-up; let it be ours
        except BaseException as caught:
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._settle, retriever, error)

    def _settle(self, retriever: Retriever | None, error: BaseException | None) -> None:
        if error is not None or retriever is None:
            self.status = Status.FAILED
            self.loaded.set_exception(error or AssertionError("load gave nothing"))
            self.loaded.exception()  # seen: the command reports it, other hosts read it in /health
            return
        self._searcher = Searcher(self.settings, retriever, self.num_retriever, self.metrics)
        self._add_gauges(self._searcher)
        if self.status is Status.LOADING:
            self.status = Status.HEALTHY
        self.loaded.set_result(retriever)

    def _add_gauges(self, searcher: Searcher) -> None:
        gauge = self.metrics.gauge
        gauge("rag_documents", "Passages in the corpus", lambda: len(searcher.retriever.corpus))
        gauge("rag_retrievers", "Retriever threads", lambda: self.num_retriever)
        gauge("rag_retrievers_available", "Retriever threads with nothing to do", lambda: searcher.available)
        gauge("rag_queue_queries", "Queries that wait now", lambda: searcher.waiting)
        gauge("rag_queue_limit", "Queries that may wait", lambda: self.settings.max_queue_queries)
