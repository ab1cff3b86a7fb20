"""What the sampler refuses to train on."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from tests.verl_search.composing import composed
from verl_search.rollout.agent_loop import fingerprint
from verl_search.trainer.sampler import check_failed_share, check_trained_tensors
from verl_search.trainer.stopping import StopTraining

RESPONSES, MASK = [10, 11, 20, 12], [1, 1, 0, 1]
EXTRA = {"response_fingerprint": fingerprint(RESPONSES), "trained_fingerprint": fingerprint([10, 11, 12])}


def rollout(**changes: float | str) -> dict[str, float | str]:
    return {
        "em": 0.0,
        "f1": 0.0,
        "format_valid": 1.0,
        "searches": 1.0,
        "tool_calls": 1.0,
        "search_failed": 0.0,
        "sampled_tokens": 30.0,
        "spliced_tokens": 50.0,
        "search_s": 0.2,
        "generate_s": 1.0,
        "think_repeat_rate": 0.0,
        "end_reason": "eos",
        "reward": 0.1,
        "log_prob_sum": -6.0,
        "generate_spans": [(0.0, 1.0)],
        **changes,
    }


def test_exact_tensors_pass() -> None:
    check_trained_tensors("uid_0_0", RESPONSES, MASK, MASK, EXTRA)


@pytest.mark.parametrize(
    ("responses", "loss_mask", "response_mask"),
    [
        ([10, 99, 20, 12], MASK, MASK),  # a sampled id changed
        ([10, 11, 99, 12], MASK, MASK),  # a spliced id changed
        (RESPONSES, [1, 1, 1, 1], [1, 1, 1, 1]),  # a spliced token would be trained on
        (RESPONSES, MASK, [1, 1, 1, 1]),  # the two masks disagree
    ],
)
def test_any_difference_stops_the_run(responses: list[int], loss_mask: list[int], response_mask: list[int]) -> None:
    with pytest.raises(StopTraining, match="uid_0_0"):
        check_trained_tensors("uid_0_0", responses, loss_mask, response_mask, EXTRA)


def test_too_many_failed_searches_stop_the_run() -> None:
    rollouts = [rollout(search_failed=1.0), *[rollout()] * 9]
    check_failed_share(rollouts, max_failed_share=0.1, global_steps=7)
    with pytest.raises(StopTraining, match="1 of 10 episodes of step 7"):
        check_failed_share(rollouts, max_failed_share=0.05, global_steps=7)


def test_a_step_without_anything_to_train_on_stops_the_run_whatever_is_allowed() -> None:
    with pytest.raises(StopTraining, match="2 of 2 episodes"):
        check_failed_share([rollout(search_failed=1.0)] * 2, max_failed_share=1.0, global_steps=7)


# verl's trainer builds a custom sampler by a function of its own that it calls deprecated.
DEPRECATED = "ignore:Warning. Function 'verl.utils.import_utils.load_extern_type':FutureWarning"


class FakeQueue:
    """The part of the TransferQueue that the sampler uses: prompt groups with one reward for each trajectory."""

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, Any]] = {}
        self.rewards: dict[str, torch.Tensor] = {}

    def finish(self, uid: str, *rewards: float) -> None:
        self.tags[uid] = {"is_prompt": True, "status": "finished", "global_steps": 1}
        for session, reward in enumerate(rewards):
            self.tags[f"{uid}_{session}_0"] = {"status": "success"}
            self.rewards[f"{uid}_{session}_0"] = torch.tensor([0.0, reward])

    def kv_list(self) -> dict[str, dict[str, Any]]:
        return {"train": dict(self.tags)}

    def kv_clear(self, *, keys: list[str], **_: Any) -> None:
        for key in keys:
            self.tags.pop(key, None)

    def kv_batch_get(self, *, keys: list[str], select_fields: list[str], **_: Any) -> dict[str, list[Any]]:
        if select_fields == ["rm_scores"]:
            return {"rm_scores": [self.rewards[key] for key in keys]}
        ids = torch.tensor(RESPONSES)
        extra = {**EXTRA, "search_rollout": rollout()}
        columns = {"responses": ids, "loss_mask": torch.tensor(MASK), "response_mask": torch.tensor(MASK)}
        return {name: [columns.get(name, extra) for _ in keys] for name in select_fields}


def make_buffer(queue: FakeQueue, monkeypatch: pytest.MonkeyPatch, refill: Any, *overrides: str) -> Any:
    """The sampler as verl's trainer builds it from the shipped config."""
    monkeypatch.setattr("verl.trainer.ppo.v1.replay_buffer.tq", queue)
    monkeypatch.setattr("verl_search.trainer.sampler.tq", queue)
    config = composed("demo", "search.url=http://x", "data.train_batch_size=2", *overrides)
    trainer = SimpleNamespace(config=config, trainer_mode="sync", _add_prompts_to_generate=refill)
    return PPOTrainer._build_replay_buffer(trainer)


@pytest.mark.filterwarnings(DEPRECATED)
def test_groups_of_equal_reward_are_trained_on_unless_filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = FakeQueue()
    queue.finish("equal", 0.1, 0.1)
    queue.finish("mixed", 1.0, 0.1)
    batch, _ = make_buffer(queue, monkeypatch, None).sample(1, "train", 2)
    assert {key.split("_")[0] for key in batch.keys} == {"equal", "mixed"}


@pytest.mark.filterwarnings(DEPRECATED)
def test_filtered_groups_are_replaced_by_ones_to_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, refills = FakeQueue(), []
    queue.finish("equal", 0.1, 0.1)
    queue.finish("mixed", 1.0, 0.1)

    def refill(count: int) -> None:
        refills.append(count)
        queue.finish(f"new{len(refills)}", *((0.0, 0.0) if len(refills) == 1 else (1.0, 0.0)))

    buffer = make_buffer(queue, monkeypatch, refill, "algorithm.filter_groups.enable=true")
    batch, metrics = buffer.sample(1, "train", 2)
    assert {key.split("_")[0] for key in batch.keys} == {"mixed", "new2"}
    assert metrics["training/filter_groups/evicted_samples"] == 2
    assert metrics["rollout/searches"] == 1.0
    assert refills == [2, 2]  # two prompts for each group that was left out


@pytest.mark.filterwarnings(DEPRECATED)
def test_a_step_that_finds_nothing_to_learn_from_takes_what_comes_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, refills = FakeQueue(), []

    def refill(prompts: int) -> None:
        refills.append(prompts)
        for number in range(prompts):
            queue.finish(f"equal{len(refills)}-{number}", 0.0, 0.0)

    refill(2)
    limit = "algorithm.filter_groups.max_num_gen_batches=3"
    buffer = make_buffer(queue, monkeypatch, refill, "algorithm.filter_groups.enable=true", limit)
    batch, metrics = buffer.sample(1, "train", 2)
    assert {key.split("_")[0] for key in batch.keys} == {"equal4-0", "equal4-1"}
    assert metrics["training/filter_groups/evicted_samples"] == 6
    assert metrics["rollout/zero_variance_share"] == 1.0
    assert sum(refills[1:]) == 6  # three batches of two
    # The bound is that of one step: the next one filters again.
    refills.clear()
    refill(2)
    assert buffer.sample(2, "train", 2)[1]["training/filter_groups/evicted_samples"] == 6


@pytest.mark.filterwarnings(DEPRECATED)
def test_a_workers_request_stops_the_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = FakeQueue()
    monkeypatch.setattr(queue, "kv_list", lambda: {"stop": {"stop-1": {"reason": "the server is gone"}}})
    with pytest.raises(StopTraining, match="the server is gone"):
        make_buffer(queue, monkeypatch, None).sample(1, "train", 2)
