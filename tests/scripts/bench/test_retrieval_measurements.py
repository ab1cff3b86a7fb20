"""The measurements of the retrieval benchmark, on a server whose searches take a known time."""

import contextlib
import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, Request, Response
from omegaconf import OmegaConf

from flashrag.errors import ReSearchError
from scripts.bench import retrieval
from scripts.bench.inputs import question_supply
from scripts.bench.load import Load
from scripts.bench.retrieval import PLANS, Contest, best_batch
from scripts.bench.servers import Server

SMALL = {"batch_sizes": [4, 8], "throughput_clients": 4, "memory_rounds": 2, "overload_s": 0.5}
SMALL |= {"limit_queries": 8, "blocking_queries": 8, "latency_queries": 8, "cached_queries": 8, "memory_queries": 8}
PLAN = OmegaConf.merge(PLANS.quick, {**SMALL, "throughput_queries": 64})


class FakeDirect:
    """Takes 8 ms for a batch of any size."""

    def call_ms(self, batch_size: int, questions: list[str]) -> np.ndarray:
        return np.full(-(-len(questions) // batch_size), 8.0)

    def cpu_s(self) -> float:
        return time.process_time()


@pytest.fixture(scope="module")
def server(serve: Any) -> Server:
    return Server(serve(echo_app()), SimpleNamespace(pid=os.getpid()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rival(serve: Any) -> str:
    return serve(echo_app())


def echo_app() -> FastAPI:
    app = FastAPI()

    @app.post("/search")
    async def search(request: Request) -> Response:
        query = (await request.json())["query"]
        return Response(query, status_code=200 if query.strip() else 400)

    @app.get("/health")
    async def health() -> str:
        return "healthy"

    return app


@pytest.fixture
def measured(server: Server, rival: str, monkeypatch: pytest.MonkeyPatch) -> Contest:
    monkeypatch.setattr(retrieval, "our_server", lambda *_: contextlib.nullcontext(server))
    monkeypatch.setattr(retrieval, "in_own_process", lambda make: contextlib.nullcontext(make()))
    monkeypatch.setattr(retrieval, "read_settings", lambda _: SimpleNamespace(max_queue_queries=100))
    monkeypatch.setattr(retrieval, "SAMPLE_MEMORY_EVERY_S", 0.05)
    limits = {"raw": FakeDirect(), "direct": FakeDirect()}
    rivals, supply = (
        dict.fromkeys(("original", "blocking"), rival),
        question_supply([f"question {n}" for n in range(50)]),
    )
    return Contest(PLAN, supply, Load(), limits, server, rivals)  # type: ignore


def test_closed_loops_have_a_figure_for_each_round(measured: Contest):
    measured.warm_up()
    throughput = measured.throughput()
    assert (
        throughput["raw"] == throughput["direct"] == {4: [500.0, 500.0], 8: [1000.0, 1000.0]}
    )  # 8 queries, 8 ms each call
    assert best_batch(throughput["raw"]) == 8
    assert [len(throughput[name]) for name in ("ours", "original", "blocking")] == [2, 2, 2]
    single = measured.single_client()
    assert single["raw_ms"] == single["direct_ms"] == [8.0, 8.0]
    assert single["http_floor_ms"] > 0 and len(single["ours_ms"]) == 2
    rung = measured.rung(2)
    assert rung["clients"] == 2
    assert {name: len(rung[name]) for name in rung if name != "clients"} == dict.fromkeys(
        ("ours_p99_ms", "blocking_p99_ms", "ours_per_s", "blocking_per_s"), PLAN.ladder_rounds
    )
    assert measured.cost(8).keys() == {"direct_ms", "server_ms", "load_ms"}
    assert measured.kept  # one of 50 answers
    assert all(answer.decode() == query for query, answer in measured.kept.items())


def test_an_overload_is_twice_the_capacity(measured: Contest, tmp_path):
    overload = measured.overload(tmp_path / "serving.yaml", seed=1)
    assert overload["offered_per_s"] == 2 * overload["capacity_per_s"]
    assert set(overload["status"]) == {200}
    assert overload["queue_limit"] == 100.0
    assert (overload["health_failed"], overload["health_p99_ms"] > 0) == (0, True)
    assert len(overload["memory_mib"]) >= 3
    assert {count: len(mib) for count, mib in measured.memory_mib(tmp_path / "serving.yaml").items()} == {1: 2, 4: 2}


def test_a_refused_request_ends_the_measurement(measured: Contest):
    with pytest.raises(ReSearchError, match=r"\{200: 1, 400: 1\}"):
        measured.post(measured.ours.url, 1, ["a question", " "])
