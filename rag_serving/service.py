"""The state of one server: loading, healthy, draining or failed; and the searcher, once the retriever is loaded.

The port answers while the retriever is being loaded.
"""

import asyncio
from enum import StrEnum
from typing import Self

from rag_serving.metrics import Metrics
from rag_serving.searcher import Searcher
from rag_serving.settings import ServerSettings
from rag_serving.workers import Facts, Workers


class Status(StrEnum):
    LOADING = "loading"
    HEALTHY = "healthy"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """An async context manager. Inside it, `loaded` is the loading task, whose result is the facts or an error."""

    def __init__(self, settings: ServerSettings, workers: Workers, metrics: Metrics) -> None:
        self.settings = settings
        self.workers = workers
        self.metrics = metrics
        self.metrics_text = metrics.text  # the answer of /metrics; on a cluster it is about all replicas
        self.status = Status.LOADING
        self.in_hand = 0  # search requests that are being answered

    @property
    def facts(self) -> Facts:
        """The description of the retriever; call only once it is loaded."""
        return self.loaded.result()

    async def __aenter__(self) -> Self:
        self.searcher = Searcher(self.settings, self.workers, self.metrics)
        self.loaded = asyncio.create_task(self._load())
        # Its error is not lost: the server's command reports it, and other hosts read the status in /health.
        self.loaded.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.loaded.cancel()
        self.searcher.close()
        await self.workers.close()

    async def _load(self) -> Facts:
        try:
            facts = await self.workers.start()
            await self.workers.rank(["warm-up"], 1)  # the first search pays for lazy set-up; no client should
        except Exception:
            self.status = Status.FAILED
            raise
        self._add_gauges(facts)
        if self.status is Status.LOADING:
            self.status = Status.HEALTHY
        return facts

    def _add_gauges(self, facts: Facts) -> None:
        gauge, searcher, count = self.metrics.gauge, self.searcher, self.workers.count
        gauge("rag_documents", "Passages in the corpus", lambda: facts.documents)
        gauge("rag_retrievers", "Searches that can run at once", lambda: count)
        gauge("rag_retrievers_available", "Searches that could start now", lambda: searcher.available)
        gauge("rag_queue_queries", "Queries that wait now", lambda: searcher.waiting)
        gauge("rag_queue_limit", "Queries that may wait", lambda: self.settings.max_queue_queries)
