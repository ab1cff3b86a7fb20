"""Makes an SGLang server write what a request says (`custom_params: {"script": ids}`), whatever the weights say.

A request names the class in SGLang's own way, by a pickle; SGLang, whose path has this folder, imports this module.
"""

from typing import Any

import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor


class WritesScript(CustomLogitProcessor):
    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> torch.Tensor:
        for index, params in enumerate(custom_param_list or []):
            script, written = params["script"], len(params["__req__"].output_ids)
            logits[index] = float("-inf")
            logits[index, script[min(written, len(script) - 1)]] = 0.0
        return logits
