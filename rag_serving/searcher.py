"""From requests to batches and back: one bounded queue, one search for identical queries, a cache of results.

Runs on the event loop; the searches themselves run in threads (workers.py). While a batch is searched, the answers of
the last one are written and the queries of the next one gather.
"""

import asyncio
import math
from collections.abc import Sequence

from cachetools import LRUCache

from flashrag.errors import ReSearchError, SearchError
from flashrag.retriever import Retriever
from rag_serving.metrics import Metrics
from rag_serving.query_queue import Ask, Job, QueryQueue, Ranked
from rag_serving.settings import ServerSettings
from rag_serving.workers import Finished, Workers

DOCUMENTS_PER_CACHED_QUERY = 10
RETRY_AFTER_S = (1, 60)
RATE_SMOOTHING = 0.2


class QueueFull(ReSearchError):
    """More queries wait than the server takes; `retry_after_s` estimates when there is room."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SearchFailed(ReSearchError):
    """The retriever raised; the message names the type of its error."""


class SearchUnavailable(ReSearchError):
    """What the retriever itself asks, another server or a shard, gave it no answer."""


class Searcher:
    def __init__(self, settings: ServerSettings, retriever: Retriever, num_retriever: int, metrics: Metrics) -> None:
        self.retriever = retriever
        self._settings = settings
        self._metrics = metrics
        self._workers = Workers(retriever, num_retriever, self._finished)
        self._queue = QueryQueue()
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

    @property
    def available(self) -> int:
        """Threads with nothing to do."""
        return self._workers.idle

    def close(self) -> None:
        self._workers.close()

    async def rank(self, queries: Sequence[str], num: int) -> list[Ranked]:
        """The best `num` hits of each query, in the order of the queries; raises QueueFull or SearchFailed.

        A caller that is cancelled takes its queries out of the queue, unless others wait for the same.
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
        """Answer from the cache, join searches under way, queue the rest: all of it, or nothing."""
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
        retry_after_s = min(max(math.ceil(len(self._queue) / rate), RETRY_AFTER_S[0]), RETRY_AFTER_S[1])
        return QueueFull(
            f"{len(self._queue)} queries wait and {more} more do not fit (max_queue_queries is "
            f"{self._settings.max_queue_queries}); try again in {retry_after_s} s",
            retry_after_s,
        )

    def _dispatch(self) -> None:
        """Hand batches to idle threads. The moment after a batch, clients are about to come back: wait for them."""
        while self._workers.idle and (waiting := len(self._queue)):
            now = self._loop.time()
            if waiting < min(self._expected, self._settings.search_batch_size) and now < self._linger_until:
                return
            self._expected = 0
            self._workers.search(self._queue.take(self._settings.search_batch_size))

    def _stop_lingering(self, until: float) -> None:
        """Called once, maybe a little early, as timers are: it must not find that lingering goes on."""
        if until == self._linger_until:
            self._linger_until = 0.0
            self._dispatch()

    def _finished(self, finished: Finished) -> None:
        self._observe(finished)
        asks = self._answer(finished)
        waiting, answered = len(self._queue), sum(ask.done.done() for ask in asks)
        # Fewer than wait already are not waited for: a core that idles costs more than they would save.
        self._expected = waiting + answered if waiting < answered else 0
        self._linger_until = self._loop.time() + self._settings.max_wait_ms / 1000
        self._loop.call_at(self._linger_until, self._stop_lingering, self._linger_until)
        self._dispatch()

    def _answer(self, finished: Finished) -> list[Ask]:
        """Give every request its part; the requests that had one, first come first."""
        asks: dict[Ask, None] = {}
        for index, job in enumerate(finished.batch):
            del self._jobs[job.key]
            asks.update(dict.fromkeys(job.positions))
            if finished.error is None:
                self._keep(job, finished.answers[index])
                for ask, positions in job.positions.items():
                    for position in positions:
                        ask.answers[position] = finished.answers[index]
                    ask.missing -= len(positions)
        for ask in asks:
            if ask.done.done():
                continue
            if finished.error is not None:
                ask.done.set_exception(_failure(finished.error))
            elif not ask.missing:
                ask.done.set_result(None)
        return list(asks)

    def _keep(self, job: Job, ranked: Ranked) -> None:
        if self._cache.getsizeof(ranked) <= self._cache.maxsize:
            self._cache[job.key] = ranked

    def _leave(self, ask: Ask) -> None:
        """Take the request out of the searches that it waits for, and those out of the queue that nobody else wants."""
        for job in ask.jobs:
            job.positions.pop(ask, None)
            if not job.positions and job.lane is not None:
                self._queue.remove(job)
                del self._jobs[job.key]

    def _observe(self, finished: Finished) -> None:
        queries = len(finished.batch)
        self._metrics.batch_queries.observe(queries)
        self._metrics.batch_seconds.observe(finished.seconds)
        rate = self._workers.count * queries / max(finished.seconds, 1e-6)
        self._queries_per_s += (rate - self._queries_per_s) * (RATE_SMOOTHING if self._queries_per_s else 1.0)


def _failure(error: Exception) -> ReSearchError:
    if isinstance(error, SearchError):
        return SearchUnavailable(str(error))
    return SearchFailed(f"the search failed: {type(error).__name__}")
