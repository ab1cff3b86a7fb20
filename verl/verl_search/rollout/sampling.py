"""The sampling parameters of a search episode, for each of verl's rollout engines.

An episode needs three things of an engine: it stops after a closed call and at the end of a sequence, it returns the
ids of the stop as well, and it reports an aborted request. verl passes the parameters on unchanged, except `max_tokens`
and `logprobs`, which it translates.
Sources: vLLM 0.28 `SamplingParams`, SGLang 0.5.12 `sampling_params.py` and `schedule_batch.py`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from flashrag.episode import EpisodeCodec

ENGINES = ("vllm", "sglang")
# The stop reason that verl's servers give an aborted request, in the order of ENGINES.
ABORTED = ("aborted", "abort")


def search_sampling_params(engine: str, params: Mapping[str, Any], codec: EpisodeCodec) -> dict[str, Any]:
    """verl's sampling parameters with the additions that a search episode needs on this engine.

    The episode's stops and end-of-sequence ids are explicit, so that the engine's own config does not matter.
    """
    stops = {"stop": [*codec.dialect.stops], "stop_token_ids": sorted(codec.eos_token_ids)}
    return {**params, **stops, **_own_params(engine)}


def seeded(engine: str, *names: object) -> dict[str, int]:
    """The seed parameter of the engine: equal names sample equal tokens, whatever else is in the batch.

    Equal up to rounding: other requests in a batch change the last bits of a probability. SGLang uses the seed only
    when it is started with `enable_deterministic_inference`.
    """
    digest = hashlib.sha256(repr(names).encode()).digest()
    return {"sampling_seed" if engine == "sglang" else "seed": int.from_bytes(digest[:4], "little") >> 1}


def _own_params(engine: str) -> dict[str, Any]:
    if engine == "sglang":
        return {"no_stop_trim": True, "skip_special_tokens": False}
    from vllm.sampling_params import RequestOutputKind

    # One message per request instead of one per token.
    return {"include_stop_str_in_output": True, "output_kind": RequestOutputKind.FINAL_ONLY}
