"""Notices processes that died and that upstream would wait for without end.

An agent-loop worker has episodes that never come; a rollout replica never takes the new weights. Does not cover: what
upstream notices itself. An engine that dies fails the requests that it has, a training process its calls.
"""

import time
from collections.abc import Sequence
from typing import Any

import httpx
import ray
from ray.exceptions import RayActorError

from verl_search.stopping import StopTraining

INTERVAL_S = 10.0
HEALTH_TIMEOUT_S = 10.0
# What is asked of each engine's server. SGLang's /health generates a token (http_server.py), which an engine without
# its memory cannot; and its server ends with its engine, so that anything will do.
HEALTH_ROUTES = {"vllm": "/health", "sglang": "/get_model_info"}


class WorkerWatch:
    """Asks each of the actors for a sign of life, again and again, without ever waiting for one."""

    def __init__(self, workers: Sequence[Any], interval_s: float = INTERVAL_S):
        self.workers = workers
        self.interval_s = interval_s
        self._asked_at = float("-inf")
        self._signs: list[Any] = []

    def check(self) -> None:
        """Raise `StopTraining` if a worker is known to have died."""
        if not self._signs and time.monotonic() - self._asked_at >= self.interval_s:
            self._asked_at = time.monotonic()
            self._signs = [worker.__ray_ready__.remote() for worker in self.workers]
        if not self._signs:
            return
        arrived, self._signs = ray.wait(self._signs, num_returns=len(self._signs), timeout=0)
        try:
            ray.get(arrived)
        except RayActorError as error:
            raise a_process_died(error) from error


def a_process_died(error: RayActorError) -> StopTraining:
    """What the death of an actor is for the run, in one line: Ray says which, and of what."""
    return StopTraining(f"a process of the run died: {' '.join(str(error).split())}")


def dead_replicas(engine: str, addresses: Sequence[str]) -> list[str]:
    """Those of the rollout servers whose engine is dead, or which are gone. One that is only slow is not."""
    with httpx.Client(timeout=HEALTH_TIMEOUT_S, trust_env=False) as client:
        return [address for address in addresses if _is_dead(client, f"http://{address}{HEALTH_ROUTES[engine]}")]


def _is_dead(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_server_error
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False
