"""LLDS by hand, and every policy loss that can be named, over the tensors of a worker."""

import math
from typing import Any

import pytest
import torch
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass

from tests.verl_search.composing import composed
from verl_search.preflight.settings_rules import CHOICES
from verl_search.trainer.policy_loss import SearchPolicyLossConfig, lost_likelihood

LOSS = "actor_rollout_ref.actor.policy_loss"
LOSSES = [str(name) for name in CHOICES[f"{LOSS}.loss_mode"]]

# Three episodes of two actions with a result between them, which has no likelihood; the last one is masked out.
MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
OLD = torch.tensor([[-1.0, -1.0, 0.0, -1.0, -1.0]] * 3)
# How much less likely each token became.
LOST = torch.tensor([[0.5, -0.2, 9.0, 0.3, -0.4], [0.5, 0.5, 9.0, 0.5, 0.5], [9.0, 9.0, 9.0, 9.0, 9.0]])
ADVANTAGES = torch.tensor([[1.0], [-1.0], [0.0]]).expand(3, 5)


def test_only_the_lost_tokens_of_an_action_that_lost_count() -> None:
    # The first action lost 0.5 - 0.2 > 0: its first token counts. The second lost 0.3 - 0.4 < 0: nothing does.
    lost = lost_likelihood(OLD, OLD - LOST, ADVANTAGES, MASK)
    assert lost[0].tolist() == pytest.approx([0.5, 0, 0, 0, 0])
    assert not lost[1].any(), "a wrong answer is not protected"
    assert not lost[2].any(), "nor is a failed search"


def test_an_episode_that_teaches_nothing_is_protected_too() -> None:
    lost = lost_likelihood(OLD, OLD - LOST, torch.zeros(3, 5), MASK)
    assert lost[1].tolist() == pytest.approx([0.5, 0.5, 0, 0.5, 0.5])


def test_nothing_counts_before_the_policy_has_moved() -> None:
    moved = OLD.clone().requires_grad_()
    lost_likelihood(OLD, moved, torch.ones(3, 5), MASK).sum().backward()
    assert moved.grad is not None and not moved.grad.any()


def actor(*overrides: str) -> Any:
    config = composed("research", "actor_rollout_ref.model.path=unused", *overrides)
    found = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    found.global_batch_info.update(dp_size=1, batch_num_tokens=int(MASK.sum()), global_batch_size=3)
    return found


def computed(config: Any, log_prob: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """As verl's `ppo_loss` calls it."""
    return get_policy_loss_fn(config.policy_loss.loss_mode)(
        old_log_prob=OLD,
        log_prob=log_prob,
        advantages=ADVANTAGES,
        response_mask=MASK,
        loss_agg_mode=config.loss_agg_mode,
        config=config,
        rollout_is_weights=None,
    )


def test_the_loss_is_that_of_its_base_and_the_lost_likelihood() -> None:
    base, _ = computed(actor(), OLD - LOST)
    loss, metrics = computed(actor(f"{LOSS}.loss_mode=llds"), OLD - LOST)
    assert float(loss - base) == pytest.approx(0.2 * 0.5 / 8)  # 8 tokens are trained on
    assert metrics["actor/llds"] == pytest.approx(0.5 / 8, rel=1e-3)
    assert metrics["actor/ppo_kl"] == pytest.approx((0.5 - 0.2 + 0.3 - 0.4 + 4 * 0.5) / 8)


def test_it_can_be_added_to_another_loss_with_another_weight() -> None:
    base, _ = computed(actor(f"{LOSS}.loss_mode=gspo"), OLD - LOST)
    overrides = (f"{LOSS}.loss_mode=llds", f"{LOSS}.llds_base=gspo", f"{LOSS}.llds_coef=2.0")
    loss, _ = computed(actor(*overrides), OLD - LOST)
    assert float(loss - base) == pytest.approx(2.0 * 0.5 / 8)


def test_it_is_aggregated_as_the_loss_is() -> None:
    norm = (
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
        "actor_rollout_ref.actor.loss_scale_factor=7",
    )
    base, _ = computed(with_constant(actor(*norm)), OLD - LOST)
    loss, _ = computed(with_constant(actor(*norm, f"{LOSS}.loss_mode=llds")), OLD - LOST)
    assert float(loss - base) == pytest.approx(0.2 * 0.5 / 3 / 7, rel=1e-4)


def with_constant(config: Any) -> Any:
    config.global_batch_info["loss_scale_factor"] = config.loss_scale_factor
    return config


def test_every_loss_of_verl_can_be_named_and_no_other() -> None:
    assert set(LOSSES) == set(POLICY_LOSS_REGISTRY)
    assert isinstance(actor().policy_loss, SearchPolicyLossConfig)


@pytest.mark.parametrize("name", LOSSES)
def test_a_failed_search_adds_no_gradient_to_any_loss(name: str) -> None:
    config = actor(f"{LOSS}.loss_mode={name}", f"{LOSS}.dro_beta=0.1")
    log_prob = (OLD - LOST / 10).requires_grad_()
    loss, _ = computed(config, log_prob)
    assert math.isfinite(loss.detach())
    loss.backward()
    assert log_prob.grad is not None
    assert not log_prob.grad[2].any()
    assert not log_prob.grad[:, 2].any(), "nor does a result"
    assert log_prob.grad[0].any() and log_prob.grad[1].any()


def test_the_settings_of_rollout_correction_reach_the_loss_that_reads_them() -> None:
    config = actor("algorithm.rollout_correction.rollout_is=token", "algorithm.rollout_correction.loss_type=reinforce")
    assert config.policy_loss.rollout_correction["rollout_is"] == "token"
    assert config.policy_loss.rollout_correction["loss_type"] == "reinforce"
