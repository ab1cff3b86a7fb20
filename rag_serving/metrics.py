"""Prometheus figures of one server, and the ASGI layer that counts requests.

Every app has its own registry, so that two apps in one process (tests) do not add up.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rag_serving.searcher import Searcher

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    def __init__(self, searcher: Searcher) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("rag_requests", "Answered requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "rag_request_seconds", "Time to answer", ["route"], buckets=SECONDS_BUCKETS, registry=self.registry
        )
        self.queries = Counter("rag_queries", "Queries searched", ["route"], registry=self.registry)
        self._gauge("rag_documents", "Passages in the corpus", lambda: len(searcher.retriever.corpus))
        self._gauge("rag_retrievers", "Retriever threads", lambda: searcher.num_retriever)
        self._gauge("rag_retrievers_available", "Retriever threads with nothing to do", lambda: searcher.available)

    def _gauge(self, name: str, text: str, read: Callable[[], int]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)


class CountRequests:
    """Counts each HTTP request by route and status, and times it. A path without a route counts as `unmatched`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # stays where the app raises before it answers

        async def watch(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
