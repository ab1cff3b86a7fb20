"""Workers that die are noticed, on real Ray actors."""

import gc
import os
import signal
import time
import warnings
from collections.abc import Iterator

import pytest
import ray

from verl_search.stopping import StopTraining
from verl_search.worker_watch import WorkerWatch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


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
