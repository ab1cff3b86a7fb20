"""The trainer's sampler: checks the batch that is about to be trained on, and turns rollouts into metrics.

Extends upstream's replay buffer. A rollout that raised, a worker that died and a worker that asks for a stop end the
run (stopping.py); upstream would pad the batch instead. The tensors in the TransferQueue are compared with the tokens
that the engine sampled, and the step's search metrics join the trainer's own. `algorithm.filter_groups` (DAPO: groups
of equal reward are left out and replaced, arXiv 2503.14476) is upstream's feature; upstream passes it only to its own
buffer, so this one does the same, with a bound: once a step has asked for so many more groups, it takes what comes.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_search.rollout.agent_loop import fingerprint
from verl_search.rollout.measures import rollout_metrics
from verl_search.trainer.stopping import StopTraining, check_stop_requests
from verl_search.trainer.watch import WorkerWatch

TRAINED_FIELDS = ["responses", "loss_mask", "response_mask", "extra_fields"]


class SearchReplayBuffer(ReplayBuffer):
    """`ReplayBuffer` that polls often, verifies token identity and reports the rollouts' search metrics."""

    def __init__(self, *, sampler_kwargs: Mapping[str, Any], refill_fn: Callable[[int], Any], **kwargs: Any):
        filter_groups, batch_size = sampler_kwargs["filter_groups"], sampler_kwargs["train_batch_size"]
        super().__init__(
            **kwargs,
            sampler_kwargs=sampler_kwargs,
            # Upstream polls every 2 s, which rounds a small model's generation time up to multiples of that.
            poll_interval=float(sampler_kwargs["poll_interval_s"]),
            refill_fn=self._refill,
            filter_groups_metric=filter_groups["metric"] if filter_groups["enable"] else None,
            train_batch_size=batch_size,
            gen_batch_size=1,  # upstream's own value when it refills
            max_inflight_gen_batches=filter_groups["max_inflight_gen_batches"],
        )
        self.max_failed_share = float(sampler_kwargs["max_failed_share"])
        self._submit = refill_fn
        self._refilled = 0
        self._most_refilled = filter_groups["max_num_gen_batches"] * batch_size or math.inf
        self._workers = WorkerWatch(())

    def watch(self, workers: Sequence[Any]) -> None:
        """Stop the run from now on when one of these actors, which produce the rollouts, dies."""
        self._workers = WorkerWatch(workers)

    def _refill(self, num_prompts: int) -> None:
        self._refilled += num_prompts
        self._submit(num_prompts)

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        """The finished groups to leave out, and how many at which reward; none from the step's bound on."""
        if self._refilled >= self._most_refilled:
            return set(), Counter()
        return super()._dapo_filtered_keys(partition_id)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Upstream's sampling; raises `StopTraining` when a rollout raised or too many searches failed."""
        self._refilled = 0
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        failed = self.failure_keys[partition_id]
        if failed:
            raise StopTraining(
                f"{len(failed)} of {batch_size} prompts of step {global_steps} failed in the rollout; the error is in "
                "the log above"
            )
        data = tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=TRAINED_FIELDS)
        # The TransferQueue hands objects out bare or wrapped in tensordict's NonTensorData.
        extra_fields = [getattr(extra, "data", extra) for extra in data["extra_fields"]]
        for key, responses, loss_mask, response_mask, extra in zip(
            batch.keys, data["responses"], data["loss_mask"], data["response_mask"], extra_fields, strict=True
        ):
            check_trained_tensors(key, responses.tolist(), loss_mask.tolist(), response_mask.tolist(), extra)
        # A key is "{uid}_{session_id}_{index}"; the rollouts of one uid are a group.
        rollouts = [
            {**extra["search_rollout"], "group_id": key.rsplit("_", 2)[0]}
            for key, extra in zip(batch.keys, extra_fields, strict=True)
        ]
        check_failed_share(rollouts, self.max_failed_share, global_steps)
        return batch, {**metrics, **rollout_metrics(rollouts)}

    def _sync_metadata_from_transfer_queue(self) -> None:
        """Upstream's poll of the queue; raises `StopTraining` if a worker asked for a stop or died."""
        super()._sync_metadata_from_transfer_queue()
        check_stop_requests(self.partitions)
        self._workers.check()


def check_trained_tensors(
    key: str, responses: list[int], loss_mask: list[int], response_mask: list[int], extra: Mapping[str, Any]
) -> None:
    """Raise `StopTraining` unless the ids are the episode's and only sampled ids carry loss."""
    trained = [token_id for token_id, trains in zip(responses, loss_mask, strict=True) if trains]
    exact = (
        loss_mask == response_mask
        and fingerprint(responses) == extra["response_fingerprint"]
        and fingerprint(trained) == extra["trained_fingerprint"]
    )
    if not exact:
        raise StopTraining(f"trajectory {key}: the ids or the loss mask to train on differ from the sampled ones")


def check_failed_share(rollouts: Sequence[Mapping[str, Any]], max_failed_share: float, global_steps: int) -> None:
    """Raise `StopTraining` when the share of episodes whose search failed exceeds its limit."""
    failed = sum(rollout["search_failed"] for rollout in rollouts)
    if failed > max_failed_share * len(rollouts) or failed == len(rollouts):
        raise StopTraining(
            f"{failed:.0f} of {len(rollouts)} episodes of step {global_steps} ended in a failed search, more than "
            f"search.max_failed_share={max_failed_share}; look at the retrieval server before you go on"
        )
