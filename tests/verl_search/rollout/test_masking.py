"""Masking matters: on a real trajectory, a spliced token's target moves no gradient, and a sampled one's does.

The trajectory was written by a run of the demo (seed 1), the policy is the demo's base model, the loss is verl's own:
the clipped policy loss and the low-variance KL of the training config, with the mask that the agent loop hands over.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
from verl.utils.config import omega_conf_to_dataclass

from flashrag.episode import EndReason, Episode, Source, Trajectory
from tests.verl_search.composing import composed
from tests.verl_search.rewarding import rewarded_trajectory
from verl_search.rollout.agent_loop import agent_loop_output

TRAJECTORY = Path(__file__).parent / "data" / "trajectory.json"
BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"
ADVANTAGE = 1.5


@cache
def real_trajectory() -> Episode:
    kept = Trajectory.from_json(TRAJECTORY.read_bytes())
    return Episode(kept.prompt_ids, list(kept.segments), list(kept.calls), EndReason(kept.end_reason))


@cache
def policy() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)


def gradient(targets: list[int]) -> torch.Tensor:
    """The gradient of verl's loss when the response's targets are these; the model reads the real response."""
    episode = real_trajectory()
    output = agent_loop_output(episode, rewarded_trajectory(episode, "?"), {})
    model = policy()
    model.zero_grad()
    logits = model(torch.tensor([output.prompt_ids + output.response_ids])).logits
    predicting = logits[0, len(output.prompt_ids) - 1 : -1].log_softmax(-1)
    log_prob = predicting.gather(-1, torch.tensor(targets)[:, None])[:, 0][None]
    mask = torch.tensor([output.response_mask])
    actor = omega_conf_to_dataclass(composed("demo", "actor_rollout_ref.model.path=unused").actor_rollout_ref.actor)
    # Old and reference policy differ from the new one, so that ratio, clip and KL all take part.
    old_log_prob = log_prob.detach() - 0.05
    loss, _ = get_policy_loss_fn("vanilla")(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=torch.full_like(log_prob, ADVANTAGE),
        response_mask=mask,
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    kl = kl_penalty(logprob=log_prob, ref_logprob=old_log_prob, kl_penalty=actor.kl_loss_type)
    loss = loss + actor.kl_loss_coef * agg_loss(loss_mat=kl, loss_mask=mask, loss_agg_mode=actor.loss_agg_mode)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def with_changed_target(source: Source) -> list[int]:
    """The response's ids with the first token of the first segment of this source replaced by another one."""
    episode = real_trajectory()
    start = 0
    for segment in episode.segments:
        if segment.source is source:
            targets = episode.response_ids
            targets[start] += 1
            return targets
        start += len(segment.token_ids)
    raise AssertionError(f"the trajectory has no {source} segment")


@cache
def unchanged() -> torch.Tensor:
    return gradient(real_trajectory().response_ids)


def test_the_trajectory_holds_both_kinds_of_tokens() -> None:
    episode = real_trajectory()
    assert 0 < sum(episode.loss_mask) < len(episode.loss_mask)
    assert unchanged().abs().max() > 0


def test_a_spliced_target_changes_no_gradient() -> None:
    assert torch.equal(gradient(with_changed_target(Source.RESULT)), unchanged())


def test_a_sampled_target_changes_the_gradient() -> None:
    assert not torch.allclose(gradient(with_changed_target(Source.MODEL)), unchanged())


@pytest.mark.parametrize("position", ["first", "last"])
def test_every_spliced_position_is_masked(position: str) -> None:
    episode = real_trajectory()
    spliced = [index for index, trains in enumerate(episode.loss_mask) if not trains]
    targets = episode.response_ids
    targets[spliced[0 if position == "first" else -1]] = 0
    assert torch.equal(gradient(targets), unchanged())
