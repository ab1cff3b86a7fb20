"""The gradient of a step's trajectories is that of the formula: masked GRPO with a low-variance KL, written out here.

From the episodes on everything is what training runs: the agent loop's output, the advantage that the config names,
verl's loss with the shipped actor config. The reference loops over groups, trajectories and sampled tokens in float64.
"""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.protocol import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import assign_non_tensor
from verl.workers.utils.losses import ppo_loss

import verl_search.trainer.trainer  # noqa: F401  # registers the advantage
from flashrag.episode import EndReason, Episode, Segment, Source
from tests.verl_search.composing import composed
from tests.verl_search.rewarding import rewarded_trajectory
from verl_search.rollout.agent_loop import agent_loop_output

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"
TOKENS = range(10, 200)


def outputs() -> list[AgentLoopOutput]:
    """Two groups of three: prompts and segments of several lengths; the last one's search failed."""
    rng = np.random.default_rng(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.choice(TOKENS, count))

    found = []
    for prompt, lengths, reward in (
        (ids(5), (4, 6, 3), 1.0),
        (ids(5), (7,), 0.1),
        (ids(5), (2, 9, 2, 5, 4), 0.0),
        (ids(8), (5, 3, 1), 0.1),
        (ids(8), (6, 2, 6), 1.0),
        (ids(8), (3, 4, 2), 0.0),
    ):
        segments = [
            Segment(Source.RESULT if i % 2 else Source.MODEL, "", ids(length)) for i, length in enumerate(lengths)
        ]
        end_reason = EndReason.SEARCH_FAILED if len(found) == 5 else EndReason.EOS
        episode = Episode(prompt, segments, end_reason=end_reason)
        found.append(agent_loop_output(episode, replace(rewarded_trajectory(episode, "?"), reward=reward), {}))
    return found


@cache
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)


def flat_gradient(loss: torch.Tensor) -> torch.Tensor:
    model().zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model().parameters() if p.grad is not None])


def log_probs(output: AgentLoopOutput) -> torch.Tensor:
    """Of each token but the first, under the current policy."""
    ids = torch.tensor([output.prompt_ids + output.response_ids])
    return model()(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


def shifted(output: AgentLoopOutput, seed: int) -> torch.Tensor:
    """Log-probabilities of the response under another policy: some tokens far enough off to be clipped."""
    noise = torch.randn(len(output.response_ids), generator=torch.Generator().manual_seed(seed))
    return log_probs(output).detach()[-len(output.response_ids) :] + 0.3 * noise


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def trained_loss(*overrides: str) -> torch.Tensor:
    config = composed("demo", "actor_rollout_ref.model.path=unused", *overrides)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    batch = outputs()
    masks = [torch.tensor(output.response_mask) for output in batch]
    scores = [torch.zeros(len(mask)) for mask in masks]
    for score, output in zip(scores, batch, strict=True):
        score[-1] = output.reward_score
    padded = {"response_mask": nested(masks), "token_level_rewards": nested(scores)}
    data = DataProto.from_dict(
        {key: value.to_padded_tensor(0) for key, value in padded.items()},
        non_tensors={"uid": np.array(list("aaabbb"), dtype=object)},
    )
    advantages = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=[f"{'aaabbb'[i]}_{i}_0" for i in range(6)],
        adv_estimator=config.algorithm.adv_estimator,
        norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo,
        config=config.algorithm,
    ).batch["advantages"]
    step = TensorDict(
        {
            "prompts": nested([torch.tensor(output.prompt_ids) for output in batch]),
            "responses": nested([torch.tensor(output.response_ids) for output in batch]),
            "response_mask": padded["response_mask"],
            "old_log_probs": nested([shifted(output, seed) for seed, output in enumerate(batch)]),
            "ref_log_prob": nested([shifted(output, 100 + seed) for seed, output in enumerate(batch)]),
            "advantages": nested([row[: len(mask)] for row, mask in zip(advantages, masks, strict=True)]),
        },
        batch_size=len(batch),
    )
    n_tokens = sum(int(mask.sum()) for mask in masks)
    assign_non_tensor(step, dp_size=1, batch_num_tokens=n_tokens, global_batch_size=len(batch))
    # verl's engines give a value for every position; the last one predicts nothing.
    policy = nested([torch.cat([log_probs(output), torch.zeros(1)]) for output in batch])
    loss, _ = ppo_loss(actor, {"log_probs": policy}, step)
    return loss


def reference_loss(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    kl_coef: float = 0.001,
    by_deviation: bool = True,
    token_mean: bool = True,
) -> torch.Tensor:
    """-E[min(r A, clip(r) A)] + kl_coef * E[exp(q) - q - 1] over the sampled tokens.

    r = p / p_old, q = log p_ref - log p, A a trajectory's advantage within its group.
    """
    batch = outputs()[:5]  # the sixth carries no loss and is in no group
    members = {0: (0, 1, 2), 1: (3, 4)}
    total = torch.zeros((), dtype=torch.float64)
    sampled_tokens = sum(sum(output.response_mask) for output in batch)
    longest = max(len(output.response_ids) for output in outputs())
    for group in members.values():
        rewards = [batch[i].reward_score or 0.0 for i in group]
        mean = sum(rewards) / len(rewards)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
        for i, reward in zip(group, rewards, strict=True):
            advantage = (reward - mean) / (deviation + 1e-6) if by_deviation else reward - mean
            response = log_probs(batch[i])[-len(batch[i].response_ids) :].double()
            old, ref = shifted(batch[i], i).double(), shifted(batch[i], 100 + i).double()
            for t, sampled in enumerate(batch[i].response_mask):
                if not sampled:
                    continue
                ratio = torch.exp(response[t] - old[t])
                clipped = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
                gain = torch.minimum(ratio * advantage, clipped * advantage)
                if advantage < 0:
                    gain = torch.maximum(gain, torch.tensor(dual_clip * advantage, dtype=torch.float64))
                q = ref[t] - response[t]
                total = total - gain + kl_coef * (torch.exp(q) - q - 1)
    # Dr.GRPO: a constant length in place of the batch's own; upstream's mean is over all sequences of the batch.
    return total / sampled_tokens if token_mean else total / (len(outputs()) * longest)


@pytest.mark.parametrize(
    ("overrides", "formula"),
    [
        ([], {}),
        (["actor_rollout_ref.actor.kl_loss_coef=0.5"], {"kl_coef": 0.5}),
        (["actor_rollout_ref.actor.clip_ratio_high=0.5"], {"clip_high": 0.5}),
        (
            [
                "algorithm.norm_adv_by_std_in_grpo=false",
                "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
            ],
            {"by_deviation": False, "token_mean": False},
        ),
    ],
    ids=["grpo", "kl", "clip-higher", "dr-grpo"],
)
def test_the_gradient_is_that_of_the_formula(overrides: list[str], formula: dict[str, float]) -> None:
    expected = flat_gradient(reference_loss(**formula))
    actual = flat_gradient(trained_loss(*overrides))
    assert expected.norm() > 1e-3
    assert (actual - expected).abs().max() < 1e-5
    assert (actual - expected).norm() / expected.norm() < 1e-5


def test_the_formulas_differ() -> None:
    # Else the test above could not tell the variants apart.
    grpo = flat_gradient(reference_loss())
    for other in ({"kl_coef": 0.5}, {"clip_high": 0.5}, {"by_deviation": False}, {"token_mean": False}):
        assert (flat_gradient(reference_loss(**other)) - grpo).norm() / grpo.norm() > 1e-2
