"""What a search episode asks of verl's rollout engines: each engine's own sampling parameters, in one place.

An episode needs three things of an engine: that it stops after a closed call and after what ends a sequence, that the
ids of what it stopped at are among those that it returns, and that it says when it was aborted. verl hands the
parameters to the engine as they are, but for `max_tokens` and `logprobs`, which it translates.
Sources: vLLM 0.28 `SamplingParams`, SGLang 0.5.12 `sampling_params.py` and `schedule_batch.py`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from flashrag.episode import EpisodeCodec

ENGINES = ("vllm", "sglang")
# What verl's servers call an aborted request, in the order of ENGINES.
ABORTED = ("aborted", "abort")


def search_sampling_params(engine: str, params: Mapping[str, Any], codec: EpisodeCodec) -> dict[str, Any]:
    """verl's sampling parameters and what makes a search episode of them on this engine.

    What ends a call or a sequence for the episode must end it for the engine, whatever config the engine reads.
    """
    stops = {"stop": [*codec.dialect.stops], "stop_token_ids": sorted(codec.eos_token_ids)}
    return {**params, **stops, **_own_params(engine)}


def seeded(engine: str, *names: object) -> dict[str, int]:
    """The parameter by which the engine samples the same for the same names, whatever else it samples meanwhile.

    Up to rounding: what shares a batch changes the last bits of a probability. SGLang heeds it only when it is started
    with `enable_deterministic_inference`.
    """
    digest = hashlib.sha256(repr(names).encode()).digest()
    return {"sampling_seed" if engine == "sglang" else "seed": int.from_bytes(digest[:4], "little") >> 1}


def _own_params(engine: str) -> dict[str, Any]:
    if engine == "sglang":
        return {"no_stop_trim": True, "skip_special_tokens": False}
    from vllm.sampling_params import RequestOutputKind

    # One message per request instead of one per token.
    return {"include_stop_str_in_output": True, "output_kind": RequestOutputKind.FINAL_ONLY}
