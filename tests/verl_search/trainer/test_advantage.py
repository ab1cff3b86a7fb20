"""GRPO's advantage without failed trajectories, against values worked out by hand, on verl's own path to it."""

from typing import Any

import numpy as np
import pytest
import torch
from verl.protocol import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

import verl_search.trainer.trainer  # noqa: F401  # what the trainer's process imports must be enough
from tests.verl_search.composing import composed

FAILED = [0, 0, 0]


def advantages(rows: list[tuple[str, float, list[int]]], *overrides: str) -> list[list[float]]:
    """The advantages of (group, reward, mask) rows, as the trainer computes them with the shipped config."""
    config: Any = composed("research", *overrides).algorithm
    mask = torch.tensor([row[2] for row in rows])
    rewards = torch.zeros(mask.shape)
    rewards[:, -1] = torch.tensor([row[1] for row in rows])
    data = DataProto.from_dict(
        {"token_level_rewards": rewards, "response_mask": mask},
        non_tensors={"uid": np.array([row[0] for row in rows], dtype=object)},
    )
    done = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=[f"{row[0]}_{i}_0" for i, row in enumerate(rows)],
        adv_estimator=config.adv_estimator,
        norm_adv_by_std_in_grpo=config.norm_adv_by_std_in_grpo,
        config=config,
    )
    return done.batch["advantages"].tolist()


def test_a_group_without_failures_is_grpo() -> None:
    # mean 0.4, deviation sqrt((0.6^2 + 0.3^2 + 0.3^2) / 2) = 0.519615: 0.6 / 0.519615 = 1.1547, and half that below 0
    rows = [("a", 1.0, [1, 0, 1]), ("a", 0.1, [1, 1, 1]), ("a", 0.1, [1, 0, 0])]
    first, second, third = advantages(rows)
    assert first == pytest.approx([1.1547, 0, 1.1547], abs=1e-4)
    assert second == pytest.approx([-0.57735] * 3, abs=1e-4)
    assert third == pytest.approx([-0.57735, 0, 0], abs=1e-4)
    assert advantages(rows, "algorithm.adv_estimator=grpo") == [first, second, third]


def test_a_failed_trajectory_is_no_member_of_its_group() -> None:
    # Without the failed one: mean 0.5, deviation sqrt((0.25 + 0.25) / 1) = 0.707107: ±0.5 / 0.707107 = ±0.707107.
    rows = [("a", 1.0, [1, 1, 1]), ("a", 0.0, FAILED), ("a", 0.0, [1, 1, 0])]
    first, failed, third = advantages(rows)
    assert first == pytest.approx([0.707107] * 3, abs=1e-4)
    assert failed == [0, 0, 0]
    assert third == pytest.approx([-0.707107, -0.707107, 0], abs=1e-4)
    # Upstream's counts it: mean 1/3 instead of 1/2.
    assert advantages(rows, "algorithm.adv_estimator=grpo")[0][0] == pytest.approx((2 / 3) / 0.57735, abs=1e-4)


def test_groups_do_not_see_each_other() -> None:
    mixed = [
        ("a", 1.0, [1, 1, 1]),
        ("b", 0.1, FAILED),
        ("a", 0.0, [1, 1, 1]),
        ("b", 1.0, [1, 0, 0]),
        ("b", 0.0, [1, 0, 0]),
    ]
    assert [row[0] for row in advantages(mixed)] == pytest.approx(
        [0.707107, 0, -0.707107, 0.707107, -0.707107], abs=1e-4
    )


def test_one_or_no_trajectory_left_has_nothing_to_learn_from() -> None:
    rows = [("alone", 1.0, [1, 1, 1]), ("alone", 0.0, FAILED), ("gone", 0.0, FAILED), ("gone", 0.0, FAILED)]
    assert advantages(rows) == [[0, 0, 0]] * 4


def test_a_group_of_equals_has_nothing_to_learn_from() -> None:
    assert advantages([("a", 0.1, [1, 1, 1]), ("a", 0.1, [1, 1, 0])]) == [[0, 0, 0]] * 2


def test_dr_grpo_does_not_divide_by_the_deviation() -> None:
    # mean 0.5: ±0.5
    rows = [("a", 1.0, [1, 1, 1]), ("a", 0.0, FAILED), ("a", 0.0, [1, 1, 0])]
    first, failed, third = advantages(rows, "algorithm.norm_adv_by_std_in_grpo=false")
    assert (first, failed, third) == ([0.5] * 3, [0, 0, 0], [-0.5, -0.5, 0])
