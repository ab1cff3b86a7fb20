"""Makes vLLM sample given tokens: its work is real, and ways of driving it can be compared on the same tokens.

vLLM loads `ForcedTokens` by its name in the process that computes; a request brings its tokens along (`forced`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

ARGUMENT = "forced_ids"


def forced(token_ids: Sequence[int]) -> dict[str, Any]:
    """`SamplingParams.extra_args` of a request that samples these tokens."""
    return {ARGUMENT: list(token_ids)}


class ForcedTokens(LogitsProcessor):
    """Leaves each request that brings `forced_ids` no choice."""

    def __init__(self, *_: Any):
        self.rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, _row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.rows:
            indices = torch.tensor(list(self.rows))
            logits[indices] = float("-inf")
            logits[indices, torch.tensor([row.next_id for row in self.rows.values()])] = 0.0
        return logits


@dataclass(frozen=True)
class _Row:
    """A request in the batch: the tokens to sample, and those sampled so far (a list that vLLM appends to)."""

    forced_ids: list[int]
    sampled_ids: list[int]

    @property
    def next_id(self) -> int:
        # The engine may compute one token after the last, before it learns that the request has ended: any will do.
        return self.forced_ids[min(len(self.sampled_ids), len(self.forced_ids) - 1)]


def _row(params: SamplingParams, _: list[int] | None, sampled_ids: list[int]) -> _Row | None:
    forced_ids = (params.extra_args or {}).get(ARGUMENT)
    return _Row(forced_ids, sampled_ids) if forced_ids else None
