"""The figures that the page computes from /metrics, in the browser that computes them; expectations by hand."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page

from rag_serving.app import add_page


@pytest.fixture(scope="module")
def url(served: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """The page's files alone, without a server behind them."""
    app = FastAPI()
    add_page(app)
    with served(app) as url:
        yield url


@pytest.fixture(scope="module")
def page(browser: Browser, url: str) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url + "/static/metrics.js")
        yield page


def call(page: Page, function: str, *arguments: Any) -> Any:
    return page.evaluate(
        "async ([name, given]) => (await import('/static/metrics.js'))[name](...given)", [function, list(arguments)]
    )


def figures(page: Page, older: str, newer: str, seconds: float) -> dict[str, Any]:
    return page.evaluate(
        """async ([older, newer, seconds]) => {
            const { readSample, figuresBetween } = await import("/static/metrics.js");
            return figuresBetween(readSample(older, 0), readSample(newer, seconds));
        }""",
        [older, newer, seconds],
    )


def metrics(queries: int, fast: int, slow: int, hits: int, misses: int) -> str:
    """The text of a server that answered `fast` requests in 10 ms to 100 ms, and `slow` ones in 100 ms to 1 s."""
    every = fast + slow
    return f"""# HELP rag_queries_total Queries searched
# TYPE rag_queries_total counter
rag_queries_total{{route="/search"}} {queries - 1}.0
rag_queries_total{{route="/retrieve"}} 1.0
rag_queries_created{{route="/search"}} 1.7e+09
rag_request_seconds_bucket{{le="0.01",route="/search"}} 0.0
rag_request_seconds_bucket{{le="0.1",route="/search"}} {fast}.0
rag_request_seconds_bucket{{le="1.0",route="/search"}} {every}.0
rag_request_seconds_bucket{{le="+Inf",route="/search"}} {every}.0
rag_request_seconds_bucket{{le="0.01",route="/metrics"}} 1e+06
rag_request_seconds_bucket{{le="+Inf",route="/metrics"}} 1e+06
rag_cache_hits_total {hits}.0
rag_cache_misses_total {misses}.0
"""


def test_two_samples_give_rates_and_quantiles(page: Page):
    found = figures(page, metrics(100, 50, 50, 10, 90), metrics(150, 95, 55, 20, 130), 10.0)
    # 50 queries in 10 s. 45 of the 50 new requests took 10 to 100 ms, 5 took 0.1 to 1 s: the 25th of them stands at
    # 0.01 + 0.09 * 25/45 = 0.06, the 49.5th at 0.1 + 0.9 * 4.5/5 = 0.91. 10 of 50 look-ups were hits.
    assert found == pytest.approx({"qps": 5.0, "p50": 0.06, "p99": 0.91, "cacheShare": 0.2})


def test_an_idle_server_has_a_rate_and_no_latency(page: Page):
    text = metrics(100, 50, 50, 10, 90)
    assert figures(page, text, text, 10.0) == {"qps": 0, "p50": None, "p99": None, "cacheShare": None}


def test_a_server_that_started_again_is_no_negative_rate(page: Page):
    unknown = {"qps": None, "p50": None, "p99": None, "cacheShare": None}
    assert figures(page, metrics(100, 50, 50, 0, 0), metrics(5, 2, 2, 0, 0), 10.0) == unknown
    assert figures(page, metrics(1, 1, 1, 0, 0), metrics(2, 2, 2, 0, 0), 0.0) == unknown


@pytest.mark.parametrize("text", ["", "\n# only a comment\n", "<html>no metrics</html>", 'rag_queries_total{route="/x'])
def test_what_is_missing_is_unknown_not_zero(page: Page, text: str):
    sample = call(page, "readSample", text, 1)
    assert {key: value for key, value in sample.items() if value is not None} == {"seconds": 1, "buckets": {}}
    assert figures(page, text, text, 10.0) == {"qps": None, "p50": None, "p99": None, "cacheShare": None}


def test_what_appears_for_the_first_time_counts_from_zero(page: Page):
    found = figures(page, "", metrics(10, 4, 0, 0, 0), 2.0)
    assert (found["qps"], found["p50"]) == (5.0, pytest.approx(0.055))  # the 2nd of 4: 0.01 + 0.09 * 2/4


def test_labels_may_hold_anything(page: Page):
    line = r'x_total{a="quote \" and } brace",b="comma, = too"} 3.5e-2'
    assert call(page, "parseMetrics", line) == [
        {"name": "x_total", "labels": {"a": r"quote \" and } brace", "b": "comma, = too"}, "value": 0.035}
    ]


def test_quantiles_at_the_edges(page: Page):
    assert call(page, "quantile", [], 0.5) is None
    assert call(page, "quantile", [[1, 0], [2, 0]], 0.5) is None
    assert call(page, "quantile", [[1, 4]], 0.5) == 0.5
    # Half of them beyond the last bound: the median is known, the 99th percentile is not.
    assert page.evaluate(
        """async () => {
            const { quantile } = await import("/static/metrics.js");
            return [quantile([[1, 5], [Infinity, 10]], 0.5), String(quantile([[1, 5], [Infinity, 10]], 0.99))];
        }"""
    ) == [1, "Infinity"]


def test_times_read_well(page: Page):
    assert [call(page, "formatSeconds", seconds) for seconds in (None, 0.00123, 0.0567, 1.26, 12.3)] == [
        *("–", "1.2 ms", "57 ms", "1.3 s", "12 s")
    ]
