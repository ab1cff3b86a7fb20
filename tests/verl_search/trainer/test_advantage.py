"""Each estimator's advantages without failed searches, on verl's own path, against formulas.py and values by hand."""

import math
from collections.abc import Sequence
from statistics import stdev
from typing import Any

import numpy as np
import pytest
import torch
from verl.protocol import DataProto
from verl.trainer.ppo.v1 import trainer_base

from tests.verl_search.composing import composed
from tests.verl_search.trainer.formulas import Row, reference_advantages, reference_gae
from verl_search.preflight.settings_rules import ESTIMATORS, GROUP_ESTIMATORS
from verl_search.trainer.advantage import compared_advantages, on_trained_tokens

FAILED = [0, 0, 0]


def batch(rows: Sequence[Row], values: Sequence[Sequence[float]] | None = None) -> DataProto:
    """As the trainer has it: the reward of an episode lies on its last token."""
    mask = torch.tensor([row[2] for row in rows])
    rewards = torch.zeros(mask.shape)
    rewards[:, -1] = torch.tensor([row[1] for row in rows])
    tensors = {"token_level_rewards": rewards, "response_mask": mask}
    tensors |= {"values": torch.tensor(values)} if values else {}
    return DataProto.from_dict(tensors, non_tensors={"uid": np.array([row[0] for row in rows], dtype=object)})


def computed(data: DataProto, *overrides: str) -> DataProto:
    """As `PPOTrainer._compute_advantage` calls it, with the shipped config."""
    config: Any = composed("research", *overrides).algorithm
    return compared_advantages(
        data,
        batch_keys=[f"{uid}_{i}_0" for i, uid in enumerate(data.non_tensor_batch["uid"])],
        adv_estimator=config.adv_estimator,
        gamma=config.gamma,
        lam=config.lam,
        num_repeat=5,
        norm_adv_by_std_in_grpo=config.norm_adv_by_std_in_grpo,
        config=config,
    )


def advantages(rows: Sequence[Row], *overrides: str) -> list[list[float]]:
    return computed(batch(rows), *overrides).batch["advantages"].tolist()


def estimator(name: str) -> str:
    return f"algorithm.adv_estimator={name}"


# Group a: rewards 1.0, 0.1, 0.1 and a failed search; group b: 1.0, 0.0; group c: one alone beside a failed one.
ROWS: list[Row] = [
    ("a", 1.0, [1, 0, 1]),
    ("a", 0.0, FAILED),
    ("b", 1.0, [1, 1, 1]),
    ("a", 0.1, [1, 1, 0]),
    ("c", 0.7, [1, 1, 1]),
    ("b", 0.0, [1, 0, 0]),
    ("a", 0.1, [0, 1, 1]),
    ("c", 0.0, FAILED),
]


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "gae"])
def test_an_estimator_sees_no_failed_search(name: str) -> None:
    found = advantages(ROWS, estimator(name))
    for row, expected in zip(found, reference_advantages(name, ROWS), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "gae"])
def test_the_reward_of_a_failed_search_does_not_matter(name: str) -> None:
    # ... whatever it is, and whether the episode is there at all.
    changed: list[Row] = [(group, 9.0 if mask == FAILED else reward, mask) for group, reward, mask in ROWS]
    assert advantages(changed, estimator(name)) == advantages(ROWS, estimator(name))
    without = [row for row in ROWS if row[2] != FAILED]
    kept = [row for row, (_, _, mask) in zip(advantages(ROWS, estimator(name)), ROWS, strict=True) if mask != FAILED]
    assert advantages(without, estimator(name)) == kept


def test_grpo_by_hand() -> None:
    # Without the failed one: mean 0.5, deviation sqrt((0.25 + 0.25) / 1) = 0.707107: ±0.5 / 0.707107 = ±0.707107.
    rows: list[Row] = [("a", 1.0, [1, 1, 1]), ("a", 0.0, FAILED), ("a", 0.0, [1, 1, 0])]
    first, failed, third = advantages(rows)
    assert first == pytest.approx([0.707107] * 3, abs=1e-4)
    assert failed == [0, 0, 0]
    assert third == pytest.approx([-0.707107, -0.707107, 0], abs=1e-4)


def test_dr_grpo_does_not_divide_by_the_deviation() -> None:
    rows: list[Row] = [("a", 1.0, [1, 1, 1]), ("a", 0.0, FAILED), ("a", 0.0, [1, 1, 0])]  # mean 0.5: ±0.5
    first, failed, third = advantages(rows, "algorithm.norm_adv_by_std_in_grpo=false")
    assert (first, failed, third) == ([0.5] * 3, [0, 0, 0], [-0.5, -0.5, 0])


@pytest.mark.parametrize("name", GROUP_ESTIMATORS)
def test_nothing_is_learned_where_there_is_nothing_to_compare(name: str) -> None:
    rows: list[Row] = [("alone", 1.0, [1, 1, 1]), ("alone", 0.0, FAILED), ("gone", 0.0, FAILED), ("gone", 0.0, FAILED)]
    assert advantages(rows, estimator(name)) == [[0, 0, 0]] * 4
    equals: list[Row] = [("a", 0.1, [1, 1, 1]), ("a", 0.1, [1, 1, 0])]
    assert np.abs(advantages(equals, estimator(name))).max() < 1e-3


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "gae"])
def test_a_batch_of_one_token_teaches_nothing(name: str) -> None:
    # The deviation of a single token is not defined.
    data = computed(batch([("a", 1.0, [0, 1, 0]), ("a", 0.0, FAILED)], [[0.5] * 3] * 2), estimator(name))
    assert data.batch["advantages"].tolist() == data.batch["returns"].tolist() == [FAILED, FAILED]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8)])
def test_gae_leaves_failed_searches_out_of_advantages_and_returns(gamma: float, lam: float) -> None:
    values = [[round(math.sin(3 * i + t), 2) for t in range(3)] for i in range(len(ROWS))]
    settings = (estimator("gae"), f"algorithm.gamma={gamma}", f"algorithm.lam={lam}")
    expected = reference_advantages("gae", ROWS, values, gamma, lam)
    _, returns = reference_gae(ROWS, values, gamma, lam)
    masks = np.array([mask for _, _, mask in ROWS])
    for other in (0.0, 9.0):  # the reward of failed searches
        rows: list[Row] = [(group, other if mask == FAILED else reward, mask) for group, reward, mask in ROWS]
        found = computed(batch(rows, values), *settings).batch
        assert found["advantages"].numpy() * masks == pytest.approx(np.array(expected), abs=1e-5)
        assert found["returns"].numpy() * masks == pytest.approx(np.array(returns), abs=1e-5)


def test_reinforce_plus_plus_discounts_over_the_trained_tokens() -> None:
    # Returns 0.25, -, 0.5 (masked: passed over) and 0: tokens 0.5, 1.0, 0.0, 0.0; mean 0.375, deviation 0.478714.
    rows: list[Row] = [("a", 1.0, [1, 0, 1]), ("b", 0.0, [0, 1, 1])]
    assert stdev([0.5, 1, 0, 0]) == pytest.approx(0.478714, abs=1e-6)
    first, second = advantages(rows, estimator("reinforce_plus_plus"), "algorithm.gamma=0.5")
    assert first == pytest.approx([0.125 / 0.478714, 0, 0.625 / 0.478714], abs=1e-5)
    assert second == pytest.approx([0, -0.375 / 0.478714, -0.375 / 0.478714], abs=1e-5)


def test_the_reward_of_an_episode_that_ends_in_a_result_is_not_lost() -> None:
    # GAE and REINFORCE++ pass over spliced tokens, and the last one holds the reward.
    rewards, mask = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.2, 0.5]]), torch.tensor([[1, 1, 0], [1, 0, 1]])
    assert on_trained_tokens(rewards, mask).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, pytest.approx(0.7)]]
    rows: list[Row] = [("a", 1.0, [1, 1, 0]), ("b", 0.0, [1, 1, 0])]
    first, second = advantages(rows, estimator("reinforce_plus_plus"))
    assert first[0] == -second[0] == pytest.approx(1 / math.sqrt(4 / 3), abs=1e-5)  # ±0.5, deviation 0.5 sqrt(4/3)


def test_the_trainer_s_process_computes_advantages_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl_search.trainer import trainer

    class Runner:
        def run(self, _: Any) -> None:
            assert trainer_base.compute_advantage_for_multi_trajectories is compared_advantages

    monkeypatch.setattr(trainer_base, "compute_advantage_for_multi_trajectories", None)
    monkeypatch.setattr(trainer_base, "Tracking", None)
    monkeypatch.setitem(trainer_base.TRAINER_REGISTRY, "sync", object)
    monkeypatch.setattr(trainer, "upstream_task_runner", Runner)
    trainer.SearchTaskRunner.__ray_metadata__.modified_class({}).run({})
