"""The load generator against a real server whose delays are known."""

import asyncio
import time

import numpy as np
import pytest
import uvloop
from fastapi import FastAPI, Request, Response

from scripts.bench.load import UNANSWERED, Load, Traffic, _until
from scripts.bench.servers import in_own_process


@pytest.fixture(scope="module")
def url(serve):
    """Answers its body after 20 ms; "busy" is refused; "slow" blocks the whole server for 300 ms."""
    app = FastAPI()

    @app.post("/")
    async def echo(request: Request) -> Response:
        body = await request.body()
        if body == b"slow":
            time.sleep(0.3)
        await _until(time.perf_counter() + 0.02)
        return Response(body, status_code=429 if body == b"busy" else 200)

    @app.get("/health")
    async def health() -> str:
        return "healthy"

    return serve(app)


def test_a_closed_loop_keeps_every_client_busy_with_one_request(url):
    traffic = Load().closed_loop(url, [b"a"] * 30 + [b"busy"] * 10, clients=10, keep_every=8)
    assert traffic.count() == {200: 30, 429: 10}
    assert traffic.latency_ms.min() >= 20
    assert 0.08 <= traffic.seconds < 2  # 40 requests of 20 ms by 10 clients
    assert traffic.accepted_per_s == pytest.approx(30 / traffic.seconds)
    assert traffic.kept == dict.fromkeys((0, 8, 16, 24), b"a")  # 32 is a refusal
    assert traffic.cpu_s > 0


def test_an_open_loop_counts_from_the_time_a_request_was_due(url):
    bodies = [b"slow"] + [b"a"] * 99
    traffic = Load().open_loop(url, bodies, due_s=np.arange(100) / 500)
    # Sent over 0.2 s, while the server answered nobody for 0.3 s: a generator that waits would see one slow request.
    assert traffic.count() == {200: 100}
    assert np.median(traffic.latency_ms) > 100


def test_a_request_without_a_body_is_a_get(url):
    traffic = Load().open_loop(f"{url}/health", [None] * 10, due_s=np.arange(10) * 0.05)
    assert traffic.count() == {200: 10}
    assert traffic.seconds >= 0.45


def test_nothing_is_sent_before_it_is_due():
    async def early_s(delay_s: float) -> float:
        due = time.perf_counter() + delay_s
        await _until(due)
        return due - time.perf_counter()

    async def earliest_s() -> float:
        return max(await asyncio.gather(*(early_s(number / 1e4) for number in range(200))))

    assert uvloop.run(earliest_s()) <= 0  # asyncio.sleep ends up to 1.4 ms early there


def test_no_answer_is_counted_as_such(closed_url):
    traffic = Load().closed_loop(closed_url, [b"a"] * 3, clients=2)
    assert traffic.count() == {UNANSWERED: 3}
    assert len(traffic.accepted_ms) == 0


def test_a_load_runs_in_a_process_of_its_own(url):
    with in_own_process(Load) as load:
        traffic = load.closed_loop(url, [b"a"] * 4, 2, 1)
    assert isinstance(traffic, Traffic)
    assert sorted(traffic.kept) == [0, 1, 2, 3]
