"""The gradient of a step's trajectories is that of the formula, written out here.

Of each estimator, of PPO's clipped loss with a low-variance KL, of LLDS, and of a critic's loss.

From the episodes on everything is what training runs: the agent loop's output, the advantage that the config names,
verl's loss with the shipped config. The reference loops over trajectories and sampled tokens in float64; its advantages
are those of formulas.py.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.protocol import DataProto
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import assign_non_tensor
from verl.workers.config import CriticConfig
from verl.workers.utils.losses import ppo_loss, value_loss

from flashrag.episode import EndReason, Episode, Segment, Source
from tests.verl_search.composing import composed
from tests.verl_search.rewarding import rewarded_trajectory
from tests.verl_search.trainer.formulas import Row, reference_advantages, reference_gae
from verl_search.rollout.agent_loop import agent_loop_output
from verl_search.trainer.advantage import compared_advantages

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


def rows() -> list[Row]:
    return [(group, o.reward_score or 0.0, o.response_mask) for group, o in zip("aaabbb", outputs(), strict=True)]


def values() -> list[list[float]]:
    """What a critic said of each token of the responses."""
    rng = np.random.default_rng(5)
    return [rng.normal(size=len(output.response_ids)).round(3).tolist() for output in outputs()]


def trained_step(config: Any) -> TensorDict:
    """The batch of a step as a worker gets it, from the outputs of the agent loop."""
    batch = outputs()
    masks = [torch.tensor(output.response_mask) for output in batch]
    scores = [torch.zeros(len(mask)) for mask in masks]
    for score, output in zip(scores, batch, strict=True):
        score[-1] = output.reward_score
    of_critic = [torch.tensor(row) for row in values()]
    padded = {"response_mask": nested(masks), "token_level_rewards": nested(scores), "values": nested(of_critic)}
    data = DataProto.from_dict(
        {key: value.to_padded_tensor(0) for key, value in padded.items()},
        non_tensors={"uid": np.array(list("aaabbb"), dtype=object)},
    )
    found = compared_advantages(
        data,
        batch_keys=[f"{'aaabbb'[i]}_{i}_0" for i in range(6)],
        adv_estimator=config.algorithm.adv_estimator,
        gamma=config.algorithm.gamma,
        lam=config.algorithm.lam,
        norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo,
        config=config.algorithm,
    ).batch
    of_tokens = {
        name: nested([row[: len(mask)] for row, mask in zip(found[name], masks, strict=True)])
        for name in ("advantages", "returns")
    }
    step = TensorDict(
        {
            "prompts": nested([torch.tensor(output.prompt_ids) for output in batch]),
            "responses": nested([torch.tensor(output.response_ids) for output in batch]),
            "response_mask": padded["response_mask"],
            "old_log_probs": nested([shifted(output, seed) for seed, output in enumerate(batch)]),
            "ref_log_prob": nested([shifted(output, 100 + seed) for seed, output in enumerate(batch)]),
            "values": padded["values"],
            **of_tokens,
        },
        batch_size=len(batch),
    )
    n_tokens = sum(int(mask.sum()) for mask in masks)
    assign_non_tensor(step, dp_size=1, batch_num_tokens=n_tokens, global_batch_size=len(batch))
    return step


def trained_loss(*overrides: str) -> torch.Tensor:
    config = composed("demo", "actor_rollout_ref.model.path=unused", *overrides)
    # verl's engines give a value for every position; the last one predicts nothing.
    policy = nested([torch.cat([log_probs(output), torch.zeros(1)]) for output in outputs()])
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    loss, _ = ppo_loss(actor, {"log_probs": policy}, trained_step(config))
    return loss


def reference_loss(
    *,
    estimator: str = "grpo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    kl_coef: float = 0.001,
    llds_coef: float = 0.0,
    constant_length: int | None = None,
) -> torch.Tensor:
    """-E[min(r A, clip(r) A)] + kl_coef * E[exp(q) - q - 1] + llds_coef * LLDS over the sampled tokens.

    r = p / p_old, q = log p_ref - log p. The sixth episode's search failed: it adds nothing.
    """
    total = torch.zeros((), dtype=torch.float64)
    advantages = reference_advantages(estimator, rows(), values())
    for i, (output, of_tokens) in enumerate(zip(outputs()[:5], advantages[:5], strict=True)):
        response = log_probs(output)[-len(output.response_ids) :].double()
        old, ref = shifted(output, i).double(), shifted(output, 100 + i).double()
        for t, (sampled, advantage) in enumerate(zip(output.response_mask, of_tokens, strict=True)):
            if not sampled:
                continue
            ratio = torch.exp(response[t] - old[t])
            clipped = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
            gain = torch.minimum(ratio * advantage, clipped * advantage)
            if advantage < 0:
                gain = torch.maximum(gain, torch.tensor(dual_clip * advantage, dtype=torch.float64))
            q = ref[t] - response[t]
            total = total - gain + kl_coef * (torch.exp(q) - q - 1)
        for action in actions(output.response_mask):
            kept = [t for t in action if of_tokens[t] >= 0]
            lost = [old[t] - response[t] for t in kept]
            if sum(lost) > 0:
                total = total + llds_coef * sum(each for each in lost if each > 0)
    # Dr.GRPO: a constant length in place of the batch's own; upstream's mean is over all sequences of the batch.
    return total / (len(outputs()) * constant_length if constant_length else sum(sum(mask) for _, _, mask in rows()))


def actions(mask: list[int]) -> list[list[int]]:
    """The runs of sampled tokens."""
    runs: list[list[int]] = [[]]
    for t, sampled in enumerate(mask):
        if sampled:
            runs[-1].append(t)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


DR_GRPO = (
    "algorithm.norm_adv_by_std_in_grpo=false",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
    "actor_rollout_ref.actor.loss_scale_factor=384",
)


@pytest.mark.parametrize(
    ("overrides", "formula"),
    [
        ([], {}),
        (["actor_rollout_ref.actor.kl_loss_coef=0.5"], {"kl_coef": 0.5}),
        (["actor_rollout_ref.actor.clip_ratio_high=0.5"], {"clip_high": 0.5}),
        ([*DR_GRPO], {"estimator": "dr_grpo", "constant_length": 384}),
        *(
            ([f"algorithm.adv_estimator={name}"], {"estimator": name})
            for name in ("rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gae", "opo", "gpg")
        ),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=llds"], {"llds_coef": 0.2}),
        (
            ["actor_rollout_ref.actor.policy_loss.loss_mode=llds", "algorithm.adv_estimator=gae"],
            {"llds_coef": 0.2, "estimator": "gae"},
        ),
    ],
    ids=lambda value: "-".join(word.rpartition(".")[2] for word in value) if isinstance(value, list) else "",
)
def test_the_gradient_is_that_of_the_formula(overrides: list[str], formula: dict[str, Any]) -> None:
    expected = flat_gradient(reference_loss(**formula))
    actual = flat_gradient(trained_loss(*overrides))
    assert expected.norm() > 1e-3
    assert (actual - expected).abs().max() < 1e-5
    assert (actual - expected).norm() / expected.norm() < 1e-5


def test_the_formulas_differ() -> None:
    # Else the test above could not tell the variants apart.
    grpo = flat_gradient(reference_loss())
    names = ("dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gae", "opo", "gpg")
    for other in ({"kl_coef": 0.5}, {"clip_high": 0.5}, {"llds_coef": 0.2}, *({"estimator": name} for name in names)):
        assert (flat_gradient(reference_loss(**other)) - grpo).norm() / grpo.norm() > 1e-2


def test_the_gradient_of_a_critic_is_that_of_the_formula() -> None:
    """max((v - R)^2, (clip(v, v_old) - R)^2) / 2, over the sampled tokens of the episodes whose search did not fail."""
    config = composed("demo", "algorithm.adv_estimator=gae")
    now = [
        torch.tensor(row, dtype=torch.float64) + 0.7 * torch.randn(len(row), generator=torch.Generator().manual_seed(i))
        for i, row in enumerate(values())
    ]
    for row in now:
        row.requires_grad_()
    _, returns = reference_gae(rows(), values(), 1.0, 1.0)
    total = torch.zeros((), dtype=torch.float64)
    for row, old, aims, (_, _, mask) in zip(now, values(), returns, rows(), strict=True):
        for t in [t for t, sampled in enumerate(mask) if sampled]:
            clipped = row[t].clamp(old[t] - 0.5, old[t] + 0.5)
            total = total + torch.maximum((row[t] - aims[t]) ** 2, (clipped - aims[t]) ** 2) / 2
    (total / sum(sum(mask) for _, _, mask in rows())).backward()
    expected = [torch.zeros(len(row)) if row.grad is None else row.grad for row in now]
    critic = CriticConfig(strategy="fsdp2", use_dynamic_bsz=True, cliprange_value=config.critic.cliprange_value)
    # A value belongs to the position before its token.
    said = [row.detach().float().requires_grad_() for row in now]
    places = [len(output.prompt_ids) - 1 for output in outputs()]
    everywhere = [torch.cat([torch.zeros(n), row, torch.zeros(1)]) for n, row in zip(places, said, strict=True)]
    loss, _ = value_loss(critic, {"values": nested(everywhere)}, trained_step(config))
    loss.backward()
    for actual, reference in zip(said, expected, strict=True):
        assert actual.grad is not None
        assert (actual.grad - reference).abs().max() < 1e-6
    assert said[5].grad is not None and not said[5].grad.any(), "a failed search teaches the critic nothing"
    assert sum(row.grad.abs().sum() for row in said[:5] if row.grad is not None) > 0.5
