"""From requests to batches and back: one bounded queue, one search for identical queries, a cache of results.

Runs on the event loop; the searches themselves run elsewhere (workers.py). While a batch is searched, the answers of
the last one are written and the queries of the next one gather.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from cachetools import LRUCache
from fastapi import HTTPException

from flashrag.errors import SearchError
from rag_serving.metrics import Metrics
from rag_serving.query_queue import Ask, Job, QueryQueue, Ranked
from rag_serving.settings import ServerSettings
from rag_serving.workers import Workers

log = logging.getLogger(__name__)

DOCUMENTS_PER_CACHED_QUERY = 10
RETRY_AFTER_S = 1  # least wait of a refused caller, and the default without an estimate
LONGEST_RETRY_AFTER_S = 60
RATE_SMOOTHING = 0.2


class QueueFull(HTTPException):
    """429, with an estimate of when there is room."""


class SearchFailed(HTTPException):
    """500: the retriever raised; the message names the type of its error."""


class SearchUnavailable(HTTPException):
    """503: the retriever got no answer from another server, or from a shard, on which it depends."""


class Searcher:
    """Raises `QueueFull`, `SearchFailed` or `SearchUnavailable` when a request gets no answer."""

    def __init__(self, settings: ServerSettings, workers: Workers, metrics: Metrics) -> None:
        self.available = workers.count  # searches that could start now
        self._workers = workers
        self._settings = settings
        self._metrics = metrics
        self._queue = QueryQueue()
        self._searches: set[asyncio.Task[None]] = set()
        self._jobs: dict[object, Job] = {}  # waiting or being searched
        # Bounded by documents: a thousand documents for one query weigh as much as a hundred ordinary queries.
        self._cache: LRUCache[object, Ranked] = LRUCache(
            settings.cache_queries * DOCUMENTS_PER_CACHED_QUERY, getsizeof=lambda ranked: max(1, len(ranked))
        )
        self._loop = asyncio.get_running_loop()
        self._queries_per_s = 0.0
        self._expected = 0
        self._linger_until = 0.0

    @property
    def waiting(self) -> int:
        """Queries in the queue."""
        return len(self._queue)

    def close(self) -> None:
        for search in self._searches:
            search.cancel()

    async def rank(self, queries: Sequence[str], num: int) -> list[Ranked]:
        """The best `num` hits of each query, in the order of the queries.

        When a caller is cancelled, its queries leave the queue, unless other requests wait for them.
        """
        ask = Ask([()] * len(queries), self._loop.create_future())
        self._admit(ask, queries, num)
        if ask.missing:
            try:
                await ask.done
            finally:
                self._leave(ask)
        return ask.answers

    def _admit(self, ask: Ask, queries: Sequence[str], num: int) -> None:
        """Answer from the cache, join searches under way, and queue the rest. Raises `QueueFull` before any change."""
        fresh: dict[object, Job] = {}
        joined = []
        hits = 0
        for position, query in enumerate(queries):
            key = (query, num)
            ranked = self._cache.get(key)
            if ranked is not None:
                ask.answers[position] = ranked
                hits += 1
            elif (job := self._jobs.get(key) or fresh.get(key)) is not None:
                joined.append((job, position))
            else:
                fresh[key] = job = Job(query, num)
                joined.append((job, position))
        if fresh and len(self._queue) + len(fresh) > self._settings.max_queue_queries:
            raise self._full(len(fresh))
        ask.missing = len(joined)
        for job, position in joined:
            job.join(ask, position)
        self._jobs.update(fresh)
        self._queue.put(list(fresh.values()))
        self._metrics.cache_hits.inc(hits)
        self._metrics.cache_misses.inc(len(fresh))
        self._metrics.joined_queries.inc(len(joined) - len(fresh))
        self._dispatch()

    def _full(self, more: int) -> QueueFull:
        rate = self._queries_per_s or 1.0
        retry_after_s = min(max(math.ceil(len(self._queue) / rate), RETRY_AFTER_S), LONGEST_RETRY_AFTER_S)
        text = f"{len(self._queue)} queries wait and {more} more do not fit (max_queue_queries is "
        text += f"{self._settings.max_queue_queries}); try again in {retry_after_s} s"
        return QueueFull(429, text, {"Retry-After": str(retry_after_s)})

    def _dispatch(self) -> None:
        """Start all searches that may run. Just after a batch, wait for its clients, which are about to come back."""
        size = self._settings.search_batch_size
        while self.available and (waiting := len(self._queue)):
            if waiting < min(self._expected, size) and self._loop.time() < self._linger_until:
                return
            self._expected = 0
            self.available -= 1
            search = self._loop.create_task(self._search(self._queue.take(size)))
            self._searches.add(search)  # the event loop itself holds tasks weakly
            search.add_done_callback(self._searches.discard)

    async def _search(self, batch: Sequence[Job]) -> None:
        """Search one batch and answer its requests."""
        started = time.perf_counter()
        try:
            ranked = await self._workers.rank([job.query for job in batch], batch[0].num)
            answers = [tuple(hits) for _, hits in zip(batch, ranked, strict=True)]
        except Exception as error:  # any error is the answer of these requests alone
            log.exception("a search of %d queries failed", len(batch))
            asks = self._fail(batch, error)
        else:
            asks = self._answer(batch, answers)
        self._observe(len(batch), time.perf_counter() - started)
        self.available += 1
        self._linger(asks)
        self._dispatch()

    def _answer(self, batch: Sequence[Job], answers: Sequence[Ranked]) -> list[Ask]:
        """Give every request its part; returns the requests that got one."""
        asks = self._end(batch)
        for job, ranked in zip(batch, answers, strict=True):
            self._keep(job, ranked)
            for ask, positions in job.positions.items():
                for position in positions:
                    ask.answers[position] = ranked
                ask.missing -= len(positions)
        for ask in asks:
            if not ask.missing and not ask.done.done():
                ask.done.set_result(None)
        return asks

    def _fail(self, batch: Sequence[Job], error: Exception) -> list[Ask]:
        asks = self._end(batch)
        for ask in asks:
            if not ask.done.done():
                ask.done.set_exception(_failure(error))
        return asks

    def _end(self, batch: Sequence[Job]) -> list[Ask]:
        """Close these searches to further requests; returns the requests that wait for them, each once."""
        for job in batch:
            del self._jobs[job.key]
        return list(dict.fromkeys(ask for job in batch for ask in job.positions))

    def _linger(self, asks: Sequence[Ask]) -> None:
        """Let the next batch wait for the clients that were just answered, if they outnumber the waiting ones.

        For fewer clients, an idle core would cost more than the larger batch saves.
        """
        waiting, answered = len(self._queue), sum(ask.done.done() for ask in asks)
        self._expected = waiting + answered if waiting < answered else 0
        self._linger_until = self._loop.time() + self._settings.max_wait_ms / 1000
        self._loop.call_at(self._linger_until, self._stop_lingering, self._linger_until)

    def _stop_lingering(self, until: float) -> None:
        # Timers may fire a little early: the deadline is cleared before `_dispatch` looks at it.
        if until == self._linger_until:
            self._linger_until = 0.0
            self._dispatch()

    def _keep(self, job: Job, ranked: Ranked) -> None:
        if self._cache.getsizeof(ranked) <= self._cache.maxsize:
            self._cache[job.key] = ranked

    def _leave(self, ask: Ask) -> None:
        """Take the request out of its searches, and remove queued searches that no other request needs."""
        for job in ask.jobs:
            job.positions.pop(ask, None)
            if not job.positions and job.lane is not None:
                self._queue.remove(job)
                del self._jobs[job.key]

    def _observe(self, queries: int, seconds: float) -> None:
        self._metrics.batch_queries.observe(queries)
        self._metrics.batch_seconds.observe(seconds)
        rate = self._workers.count * queries / max(seconds, 1e-6)
        self._queries_per_s += (rate - self._queries_per_s) * (RATE_SMOOTHING if self._queries_per_s else 1.0)


def _failure(error: Exception) -> HTTPException:
    if isinstance(error, SearchError):
        return SearchUnavailable(503, str(error), {"Retry-After": str(RETRY_AFTER_S)})
    return SearchFailed(500, f"the search failed: {type(error).__name__}")
