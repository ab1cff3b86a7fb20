"""Notices dead processes for which upstream would wait for ever.

The episodes of a dead agent-loop worker never arrive, and a dead rollout replica never takes the new weights.
Does not cover: deaths that upstream notices itself (a dead engine by its failing requests, a dead training process by
its failing calls).
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

import httpx
import ray
from ray.exceptions import RayActorError, RayTaskError

from verl_search.trainer.stopping import StopTraining

INTERVAL_S = 10.0
HEALTH_TIMEOUT_S = 10.0
# The route that shows whether an engine lives. SGLang's /health generates a token (http_server.py), for which a
# sleeping engine has no memory; its server ends together with its engine, so any other route serves.
HEALTH_ROUTES = {"vllm": "/health", "sglang": "/get_model_info"}


class WorkerWatch:
    """Asks each actor for a sign of life at intervals, and never waits for the answer."""

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


def a_process_died(error: RayActorError | RayTaskError) -> StopTraining:
    """The stop that a dead actor causes, also in others' calls; Ray's message names the actor and the cause."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return StopTraining(f"a process of the run died: {' '.join(str(cause).split())}")


def dead_replicas(engine: str, addresses: Sequence[str]) -> list[str]:
    """The rollout servers that are gone or whose engine is dead. A slow server does not count."""
    # The run's own machines, whichever they are, are asked without a proxy.
    with httpx.Client(timeout=HEALTH_TIMEOUT_S, trust_env=False) as client:
        return [address for address in addresses if _is_dead(client, f"http://{address}{HEALTH_ROUTES[engine]}")]


def _is_dead(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_server_error
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False


class ReplicaDiedTakingWeights(StopTraining):
    """The processes that hold the trained weights wait for a dead replica, so they cannot save a checkpoint."""

    saves_checkpoint = False


def hand_over_weights(work: Callable[[], None], look: Callable[[], list[str]], interval_s: float = INTERVAL_S) -> None:
    """Do `work`, which may wait for a rollout replica for ever, and check for dead replicas with `look` at intervals.

    Raises `ReplicaDiedTakingWeights` when one has died, and leaves the work waiting.
    """
    done: Future[None] = Future()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=do, daemon=True).start()  # a daemon, so that waiting work cannot keep the process alive
    while not wait([done], timeout=interval_s).done:
        if dead := look():
            raise ReplicaDiedTakingWeights(
                f"a rollout replica failed while it took the new weights: the engine of {', '.join(dead)} is dead. "
                "The last checkpoint stays; the steps since then are trained again"
            )
    done.result()
