"""The contract with both rollout engines: their classes take what we ask for, and verl's servers translate the rest."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import verl
from transformers import AutoTokenizer
from vllm.sampling_params import RequestOutputKind, SamplingParams

from flashrag.episode import PYTHON, RESEARCH, Dialect, EpisodeCodec
from verl_search.rollout.sampling import ENGINES, search_sampling_params, seeded

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"
# What verl's agent-loop worker asks for (agent_loop_tq.py), and what its servers take out before the engine sees it.
FROM_VERL = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
TRANSLATED = {"logprobs", "max_tokens"}
# The arguments of `SamplingParams` in sglang 0.5.12, which verl 0.9.1 names for its second engine; no CPU build of it.
SGLANG_0_5_12 = {
    *("max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens", "n", "json_schema", "regex"),
    *("ebnf", "structural_tag", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"),
    *("custom_params", "stream_interval", "logit_bias", "sampling_seed"),
}


def own_params(engine: str, dialect: Dialect = RESEARCH) -> dict[str, Any]:
    codec = EpisodeCodec(AutoTokenizer.from_pretrained(BASE_MODEL), {9, 7}, dialect)
    params = search_sampling_params(engine, {**FROM_VERL, "max_tokens": 40}, codec)
    return {key: value for key, value in params.items() if key not in TRANSLATED}


def test_vllm_takes_what_we_ask_for() -> None:
    params = SamplingParams(max_tokens=40, logprobs=0, **own_params("vllm"))
    assert (params.stop, params.stop_token_ids, params.top_k) == (["</search>"], [7, 9], -1)
    assert params.include_stop_str_in_output
    assert params.output_kind is RequestOutputKind.FINAL_ONLY


@pytest.mark.parametrize("engine", ENGINES)
def test_each_tool_has_a_stop(engine: str) -> None:
    assert own_params(engine, RESEARCH.with_calls(PYTHON))["stop"] == ["</search>", "</python>"]


def test_a_seed_is_its_names_and_nothing_else() -> None:
    assert seeded("vllm", 0, "train", 3, "q7", 1, 0) == seeded("vllm", 0, "train", 3, "q7", 1, 0)
    seeds = [seeded("vllm", 0, "train", 3, "q7", session, turn)["seed"] for session in range(40) for turn in range(5)]
    assert len(set(seeds)) == 200
    assert all(SamplingParams(seed=seed).seed == seed for seed in seeds)
    assert [*seeded("sglang", 0).keys()] == ["sampling_seed"] and "sampling_seed" in SGLANG_0_5_12


def test_sglang_takes_what_we_ask_for() -> None:
    params = own_params("sglang")
    names = SGLANG_0_5_12
    if importlib.util.find_spec("sglang"):
        from sglang.srt.sampling.sampling_params import SamplingParams as SGLangParams

        names = set(inspect.signature(SGLangParams).parameters)
    assert params.keys() <= names
    assert (params["stop"], params["stop_token_ids"], params["no_stop_trim"]) == (["</search>"], [7, 9], True)
    assert not params.keys() & {"include_stop_str_in_output", "output_kind"}


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (
            "sglang_rollout/async_sglang_server.py",
            ['sampling_params.pop("max_tokens")', 'sampling_params.pop("logprobs"'],
        ),
        ("vllm_rollout/vllm_async_server.py", ['sampling_params.pop("max_tokens")', 'sampling_params.pop("logprobs"']),
        ("vllm_rollout/vllm_async_server.py", ['stop_reason="aborted"']),
        # SGLang's own name of the reason is handed on; the ids are those of the engine, with the stop among them.
        ("sglang_rollout/async_sglang_server.py", ["stop_reason=finish_reason", 'output.get("output_ids", [])']),
    ],
)
def test_verls_servers_translate_the_rest(file: str, names: list[str]) -> None:
    source = (Path(verl.__file__).parent / "workers" / "rollout" / file).read_text(encoding="utf-8")
    assert [name for name in names if name not in source] == []


def test_every_engine_is_covered() -> None:
    assert ENGINES == ("vllm", "sglang")
