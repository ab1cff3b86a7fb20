"""Makes a vLLM server write what a request says (`vllm_xargs: {"script": ids}`), whatever the weights say."""

from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates


class WritesScript(LogitsProcessor):
    def __init__(self, *_: Any):
        self.rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, self._row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for index, (script, sampled_ids) in self.rows.items():
            logits[index] = float("-inf")
            logits[index, script[min(len(sampled_ids), len(script) - 1)]] = 0.0
        return logits

    @staticmethod
    def _row(params: SamplingParams, _: list[int] | None, sampled_ids: list[int]) -> tuple[list[int], list[int]] | None:
        script = (params.extra_args or {}).get("script")
        return None if script is None else ([int(token) for token in script], sampled_ids)
