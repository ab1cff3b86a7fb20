"""LLDS, a policy loss that protects the likelihood of good answers: arXiv 2512.04220v2, section 5.5.

To another policy loss it adds, with a coefficient, the mean over the trained tokens of max(0, log p_old - log p), where
the advantage is not negative (right answers, and groups that teach nothing) and the action as a whole became less
likely. An action is what the model writes between two results. Like the published code
(vengdeng/LLDS-On-Group-Relative-Policy-Optimization-Collapse-in-Search-R1 at c19a094) it divides by all trained tokens;
the paper's formula divides by those of the preserved episodes. Does not cover: LLDS-MA, which weighs the answer less,
and the gates by token and by response.
"""

from dataclasses import dataclass
from typing import Any

import torch
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, register_policy_loss
from verl.utils.torch_functional import masked_mean
from verl.workers.config import ActorConfig, PolicyLossConfig


@dataclass
class SearchPolicyLossConfig(PolicyLossConfig):
    """verl's settings and those of LLDS; importing it, as each worker does to read them, registers the loss."""

    llds_base: str = "vanilla"
    llds_coef: float = 0.2


@register_policy_loss("llds")
def llds_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The loss `llds_base` and `llds_coef` times the lost likelihood; the tensors have the shape (episodes, tokens)."""
    assert config is not None
    settings: Any = config.policy_loss
    base, metrics = get_policy_loss_fn(settings.llds_base)(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    lost = lost_likelihood(old_log_prob, log_prob, advantages, response_mask)
    penalty = agg_loss(loss_mat=lost, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)
    told = {**metrics, "actor/llds": masked_mean(lost, response_mask).detach().item()}
    return base + settings.llds_coef * penalty, told


def lost_likelihood(
    old_log_prob: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor, response_mask: torch.Tensor
) -> torch.Tensor:
    """max(0, log p_old - log p) of each preserved token whose action became less likely, 0 elsewhere."""
    written = response_mask.bool()
    loss = torch.where(written & (advantages >= 0), old_log_prob - log_prob, 0.0)
    before = torch.nn.functional.pad(written[:, :-1], (1, 0))
    # Each token's action by number; a result has the number of the action before it, and loses nothing.
    action = (written & ~before).cumsum(dim=-1)
    of_action = torch.zeros(len(loss), loss.shape[1] + 1, dtype=loss.dtype, device=loss.device)
    of_action = of_action.scatter_add(1, action, loss.detach())
    return torch.relu(loss) * (of_action.gather(1, action) > 0)
