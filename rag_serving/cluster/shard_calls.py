"""Asking all shards of an index over Ray, whatever dies meanwhile: every shard answers, or there is no answer.

A call that is lost with its process is made again, on another copy of the shard or on the one that Ray starts in its
place, until the time is up. A result without one of the shards is never given: it would look like a full one.
"""

import time
from collections.abc import Sequence
from typing import cast

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from flashrag.errors import SearchError
from rag_serving.cluster.shards import Ranked

PAUSE_S = 0.1  # before a lost call is made again; a call to a shard without a live process waits by itself


class ShardDown(SearchError):
    """A shard gave no answer in time."""


class ShardCalls:
    """`handles` in the order of the shards. Safe to call from several threads at once, never from an event loop."""

    def __init__(self, handles: Sequence[DeploymentHandle], timeout_s: float) -> None:
        self._handles = handles
        self._timeout_s = timeout_s

    def __call__(self, vectors: np.ndarray, num: int) -> list[Ranked]:
        """Every shard's best `num` rows; raises ShardDown."""
        deadline = time.monotonic() + self._timeout_s
        responses = [self._call(shard, vectors, num) for shard in range(len(self._handles))]
        return [self._answer(shard, response, vectors, num, deadline) for shard, response in enumerate(responses)]

    def wait_until_up(self) -> tuple[int, int]:
        """Return once every shard has answered, however long they load: the rows of all, and their dimension."""
        sizes = [handle.size.remote().result() for handle in self._handles]
        return sizes[0]

    def _call(self, shard: int, vectors: np.ndarray, num: int) -> DeploymentResponse:
        return cast(DeploymentResponse, self._handles[shard].rank_rows.remote(vectors, num))

    def _answer(
        self, shard: int, response: DeploymentResponse, vectors: np.ndarray, num: int, deadline: float
    ) -> Ranked:
        lost: Exception | None = None
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                return response.result(timeout_s=left_s)
            except TimeoutError as error:
                lost = lost or error
            except RayTaskError:  # the shard's own code raised: another copy would, too
                raise
            except (RayError, RayServeException) as error:
                lost = error
                time.sleep(PAUSE_S)
                response = self._call(shard, vectors, num)
        response.cancel()
        raise ShardDown(f"shard {shard} gave no answer within {self._timeout_s:g} s") from lost
