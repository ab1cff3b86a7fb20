"""What a search episode asks of verl's rollout engines: each engine's own sampling parameters, in one place.

An episode needs three things of an engine: that it stops after `</search>` and after what ends a sequence, that the
ids of what it stopped at are among those that it returns, and that it says when it was aborted. verl hands the
parameters to the engine as they are, but for `max_tokens` and `logprobs`, which it translates.
Sources: vLLM 0.28 `SamplingParams`, SGLang 0.5.12 `sampling_params.py` and `schedule_batch.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flashrag.protocol import SEARCH_CLOSE

ENGINES = ("vllm", "sglang")
# What verl's servers call an aborted request, in the order of ENGINES.
ABORTED = ("aborted", "abort")


def search_sampling_params(engine: str, params: Mapping[str, Any], eos_token_ids: Iterable[int]) -> dict[str, Any]:
    """verl's sampling parameters and what makes a search episode of them on this engine."""
    stops = {"stop": [SEARCH_CLOSE], "stop_token_ids": sorted(eos_token_ids)}
    return {**params, **stops, **_own_params(engine)}


def _own_params(engine: str) -> dict[str, Any]:
    if engine == "sglang":
        return {"no_stop_trim": True, "skip_special_tokens": False}
    from vllm.sampling_params import RequestOutputKind

    # One message per request instead of one per token.
    return {"include_stop_str_in_output": True, "output_kind": RequestOutputKind.FINAL_ONLY}
