"""Prometheus figures of one server, or of several at once, and the ASGI layer that counts requests.

Every app has its own registry, so that two apps in one process (tests) do not add up.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
QUERIES_BUCKETS = tuple(2**power for power in range(11))


class Refusal(StrEnum):
    """The reasons why a valid request got no answer."""

    QUEUE_FULL = "queue_full"
    DEADLINE = "deadline"
    GONE = "gone"
    LOADING = "loading"
    DRAINING = "draining"


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("rag_requests", "Answered requests", "route", "status")
        self.seconds = self._histogram("rag_request_seconds", "Time to answer", SECONDS_BUCKETS, "route")
        self.queries = self._counter("rag_queries", "Queries asked", "route")
        self.batch_queries = self._histogram("rag_batch_queries", "Queries searched together", QUERIES_BUCKETS)
        self.batch_seconds = self._histogram("rag_batch_seconds", "Time of one search", SECONDS_BUCKETS)
        self.cache_hits = self._counter("rag_cache_hits", "Queries answered from the cache")
        self.cache_misses = self._counter("rag_cache_misses", "Queries that had to be searched")
        self.joined_queries = self._counter("rag_joined_queries", "Queries that joined the search of an identical one")
        self.refused = self._counter("rag_refused", "Requests refused or given up", "reason")
        for reason in Refusal:  # created at the start, so that a rate over time begins at zero
            self.refused.labels(reason)

    async def text(self) -> bytes:
        """The figures of this server."""
        return generate_latest(self.registry)

    def gauge(self, name: str, text: str, read: Callable[[], int]) -> None:
        """Add a figure that `read` gives at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


class CountRequests:
    """Counts each HTTP request by route and status, and times it. A path without a route counts as `unmatched`."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(getattr(route, "path", "") for route in routes)  # no path here has parameters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # stays if the app raises before it answers

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = scope["path"] if scope["path"] in self.paths else "unmatched"
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)


def labelled(texts: Mapping[str, str]) -> bytes:
    """One Prometheus text of all replicas' own texts, which are given by name.

    >>> labelled({"a": "# TYPE n gauge\\nn 1\\n", "b": "# TYPE n gauge\\nn 2\\n"}).decode().splitlines()[2:]
    ['n{replica="a"} 1.0', 'n{replica="b"} 2.0']
    """
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    return generate_latest(SimpleNamespace(collect=families.values))  # pyrefly: ignore (it calls nothing else)
