"""Processes that die are noticed: real Ray actors, and rollout servers by their health."""

import gc
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest
import ray
from fastapi import FastAPI, Response

from verl_search.rollout.sampling import ENGINES
from verl_search.trainer import watch as worker_watch
from verl_search.trainer.stopping import StopTraining
from verl_search.trainer.watch import WorkerWatch, dead_replicas, hand_over_weights


@ray.remote(num_cpus=0)
class Worker:
    def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def workers() -> Iterator[list]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        yield [Worker.remote() for _ in range(2)]  # type: ignore[attr-defined]
    finally:
        ray.shutdown()
        with warnings.catch_warnings(action="ignore"):
            gc.collect()  # Ray forgets its processes without waiting for them


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_stops_the_run(workers: list) -> None:
    pid = ray.get([worker.pid.remote() for worker in workers])[1]
    watch = WorkerWatch(workers, interval_s=0.1)
    for _ in range(10):
        watch.check()  # all is well, also while answers are on their way
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StopTraining, match=r"a process of the run died: .*Worker"):
        for _ in range(200):
            watch.check()
            time.sleep(0.05)


def test_a_replica_that_is_gone_or_says_so_is_dead(
    serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    def replica(status: int, delay_s: float = 0.0) -> str:
        app = FastAPI()

        @app.get("/health")
        def health() -> Response:
            time.sleep(delay_s)
            return Response(status_code=status)

        return serve(app).removeprefix("http://")

    monkeypatch.setattr(worker_watch, "HEALTH_TIMEOUT_S", 0.5)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # which is not asked
    well, slow, dead, gone = replica(200), replica(200, delay_s=1.0), replica(503), f"127.0.0.1:{closed_port}"
    assert dead_replicas("vllm", [well, slow, dead, gone]) == [dead, gone]
    assert dead_replicas("sglang", [well, slow, dead, gone]) == [gone]  # its /health is not asked


def test_weights_that_are_taken_are_only_waited_for() -> None:
    done: list[str] = []
    looks = iter([[], []])
    hand_over_weights(lambda: (time.sleep(0.25), done.append("taken"))[1], lambda: next(looks), interval_s=0.1)
    assert done == ["taken"]
    with pytest.raises(ValueError, match="upstream's own"):
        hand_over_weights(lambda: int("upstream's own"), lambda: [], interval_s=10.0)


def test_a_replica_that_dies_taking_weights_stops_the_run_without_a_checkpoint() -> None:
    for_ever = Event()
    looks = iter([[], ["192.0.2.2:8000"]])
    with pytest.raises(StopTraining, match=r"took the new weights: the engine of 192\.0\.2\.2:8000 is dead") as stop:
        hand_over_weights(lambda: for_ever.wait() and None, lambda: next(looks), interval_s=0.05)
    for_ever.set()
    assert not stop.value.saves_checkpoint


def test_each_engine_is_asked_in_its_own_way() -> None:
    assert sorted(worker_watch.HEALTH_ROUTES) == sorted(ENGINES)
