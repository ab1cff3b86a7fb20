"""/metrics over all replicas: whichever is asked answers for each, by the label `replica`.

A scrape reaches any one of them; without this, counters would jump between one replica's figures and another's.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping

from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from rag_serving.metrics import ASGIApp, Receive, Scope, Send


class MetricsOfAll:
    """The innermost ASGI layer, behind the gate; `texts` gives each replica's own /metrics by its name."""

    def __init__(self, app: ASGIApp, texts: Callable[[], Awaitable[Mapping[str, str]]]) -> None:
        self.app = app
        self._texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/metrics" and scope["method"] == "GET":
            answer: ASGIApp = Response(labelled(await self._texts()), media_type=CONTENT_TYPE_LATEST)
        else:
            answer = self.app
        await answer(scope, receive, send)


def labelled(texts: Mapping[str, str]) -> bytes:
    """One Prometheus text of all.

    >>> labelled({"a": "# TYPE n gauge\\nn 1\\n", "b": "# TYPE n gauge\\nn 2\\n"}).decode().splitlines()[2:]
    ['n{replica="a"} 1.0', 'n{replica="b"} 2.0']
    """
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Collected(families.values()))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
