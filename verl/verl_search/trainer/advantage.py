"""Advantages without the episodes whose search failed, by the estimator of verl's that the config names.

Such an episode carries no loss (agent_loop.py), so it is recognised by its empty mask. Its reward does not depend on
the policy: in the baseline of its group, or in the mean and deviation of the batch, it would move the advantages of the
others. So the estimator sees only the episodes that can be compared, and the others get 0. The formulas are verl's
(docs/training.md names their papers); upstream.py puts `compared_advantages` in the place of verl's function.
"""

from collections import Counter
from typing import Any

import numpy as np
import torch
from verl.protocol import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from verl_search.preflight.settings_rules import GROUP_ESTIMATORS


def compared_advantages(data: DataProto, batch_keys: list[str], adv_estimator: str, **settings: Any) -> DataProto:
    """The batch with its `advantages` and `returns`, shape (episodes, tokens); 0 for an episode that is left out.

    Left out is one without a trained token, and, where an estimator compares the answers to a question, one that is
    alone in its group.
    """
    mask = data.batch["response_mask"]
    rows = mask.any(dim=-1).numpy()
    if adv_estimator in GROUP_ESTIMATORS:
        rows &= _in_company(data.non_tensor_batch["uid"], rows)
    found = {name: torch.zeros(mask.shape) for name in ("advantages", "returns")}
    if mask[rows].sum() > 1:  # verl cannot take the deviation of a single token
        compared = data.select_idxs(rows)
        compared.batch["token_level_rewards"] = on_trained_tokens(compared.batch["token_level_rewards"], mask[rows])
        keys = [key for key, is_compared in zip(batch_keys, rows, strict=True) if is_compared]
        done = compute_advantage_for_multi_trajectories(
            compared, batch_keys=keys, adv_estimator=adv_estimator, **settings
        )
        for name, values in found.items():
            values[rows] = done.batch[name].float()
    for name, values in found.items():
        data.batch[name] = values
    return data


def _in_company(groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which episodes have another one of `rows` in their group."""
    sizes = Counter(groups[rows])
    return np.array([sizes[group] > 1 for group in groups])


def on_trained_tokens(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The rewards of tokens that are not trained on, moved to the last trained token of their row.

    An episode that ends in a result has its reward on a spliced token, and GAE and REINFORCE++ pass over these.
    """
    last = mask.shape[-1] - 1 - mask.flip(-1).int().argmax(dim=-1)
    moved = rewards * mask
    moved[torch.arange(len(mask)), last] += (rewards * (1 - mask)).sum(dim=-1)
    return moved
