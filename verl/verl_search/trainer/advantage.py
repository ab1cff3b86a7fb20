"""GRPO's advantage; a trajectory whose search failed is left out of its group.

Such a trajectory carries no loss (agent_loop.py), so it is recognised by its empty mask. Its reward does not depend on
the policy: in the group's mean and deviation it would make the others look better than they are. The formula is
upstream's (arXiv 2402.03300; with `algorithm.norm_adv_by_std_in_grpo=false` that of Dr.GRPO, arXiv 2503.20783).
config/research.yaml names the estimator; importing this module registers it.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est

ESTIMATOR = "search_grpo"


@register_adv_est(ESTIMATOR)
def search_grpo_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, config: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns (the same), shape (trajectories, tokens); `index` names each trajectory's group.

    0 for a trajectory without a trained token, and for one alone in its group, which has no other to compare with.
    """
    counts = response_mask.any(dim=-1)
    groups = index[counts.numpy()]
    relative, _ = compute_grpo_outcome_advantage(
        token_level_rewards[counts],
        response_mask[counts],
        groups,
        norm_adv_by_std_in_grpo=config["norm_adv_by_std_in_grpo"],
    )
    sizes = Counter(groups)
    relative[[sizes[group] == 1 for group in groups]] = 0.0
    advantages = relative.new_zeros(response_mask.shape)
    advantages[counts] = relative
    return advantages, advantages
