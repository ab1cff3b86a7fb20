"""Every fault of a model's folder is found from its files, all at once."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashrag.errors import UserError
from flashrag.generator import MODEL_RULES, ModelFolder, can_be_trained, known_to_vllm, read_model_facts
from flashrag.generator.model_folder import EndTokens
from flashrag.generator.preflight import vllm_architectures
from flashrag.preflight import Severity, examine

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"
RULES = {**MODEL_RULES, "model.architecture": known_to_vllm}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(BASE_MODEL, tmp_path / "ein Modell ½")


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **values}))


def found(model: Path) -> list[tuple[Severity, str, str]]:
    return [(each.severity, each.rule, each.message) for each in examine(RULES, ModelFolder(model, "--model_path"))]


def test_nothing_is_said_about_a_good_model(model):
    assert found(model) == []


def test_everything_that_is_missing_is_told_at_once(model):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    assert [rule for _, rule, _ in found(model)] == ["model.config"]
    shutil.copy(BASE_MODEL / "config.json", model)
    assert [(rule, message.partition(" holds ")[2][:12]) for _, rule, message in found(model)] == [
        ("model.weights", "no weights ("),
        ("model.end_tokens", "no tokenizer"),
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [("no/such", "--model_path=no/such does not exist; give"), (__file__, "is a file; give the folder of")],
)
def test_what_is_no_folder_is_told_once(path, message):
    ((_, rule, text),) = found(Path(path))
    assert rule == "model.config"
    assert message in text


def test_weights_that_are_cut_short_are_named(model):
    data = (model / "model.safetensors").read_bytes()
    for kept in (0, 7, 100, len(data) - 1):
        (model / "model.safetensors").write_bytes(data[:kept])
        ((severity, rule, message),) = found(model)
        assert (severity, rule) == (Severity.ERROR, "model.weights")
        assert "model.safetensors is damaged" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_that_is_no_json_object_is_named(model, name, text):
    (model / name).write_text(text)
    errors = [message for severity, _, message in found(model) if severity is Severity.ERROR]
    assert len(errors) == 1
    assert name in errors[0]


@pytest.mark.parametrize(
    ("architectures", "severity", "words"),
    [
        ([], Severity.ERROR, "names no architectures"),
        (["BertModel"], Severity.ERROR, "'BertModel' is none that the installed vLLM can generate with"),
        (["Qwen2ForCausalML"], Severity.ERROR, "did you mean 'Qwen2ForCausalLM'?"),
        (["BertLMHeadModel"], Severity.ERROR, "is none that"),
        (["BigBirdForCausalLM"], Severity.WARNING, "runs through transformers, if at all"),
    ],
)
def test_an_architecture_that_vllm_does_not_run(model, architectures, severity, words):
    change(model / "config.json", architectures=architectures)
    ((found_severity, _, message),) = found(model)
    assert found_severity is severity
    assert words in message


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(
    name=st.sampled_from([
        *("architectures", "max_position_embeddings", "rope_scaling", "layer_types", "num_hidden_layers", "head_dim"),
        *("num_key_value_heads", "sliding_window", "vocab_size", "text_config", "eos_token_id", "auto_map"),
    ]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
)  # fmt: skip
def test_any_value_in_the_configuration_is_read_or_told(tmp_path_factory, name, value):
    model = shutil.copytree(BASE_MODEL, tmp_path_factory.mktemp("any") / "model")
    change(model / "config.json", **{name: value})
    facts = ModelFolder(model, "--model_path")
    assert all(finding.message for finding in examine(RULES, facts))
    with suppress(UserError):  # another size than that of the weights
        read_model_facts(model, "--model_path").cache_bytes(10, 4)
    shutil.rmtree(model)


def test_a_configuration_without_a_kind_is_loaded_by_nothing(model):
    change(model / "config.json", model_type=None)
    assert [message.partition(": ")[2] for _, _, message in found(model)] == [
        "config.json names no model_type; take that of the base model"
    ]


@pytest.mark.parametrize("config", [{"quant_method": "awq", "bits": 4}, "awq"])
def test_quantized_weights_are_served_and_not_trained(model, config):
    change(model / "config.json", quantization_config=config)
    assert found(model) == []
    (finding,) = can_be_trained(ModelFolder(model, "--actor_model_path"))
    assert finding.severity is Severity.ERROR
    assert "its weights are quantized (awq), and such weights are not trained" in finding.message


def test_code_of_its_own_has_to_be_allowed(model):
    change(model / "config.json", architectures=["OurModel"], auto_map={"AutoModelForCausalLM": "ours.OurModel"})
    ((severity, rule, message),) = found(model)
    assert (severity, rule) == (Severity.WARNING, "model.architecture")
    assert "--trust-remote-code" in message


def test_the_architectures_are_those_of_the_installed_vllm():
    known = vllm_architectures()
    assert {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM", "Gemma3ForConditionalGeneration"} <= known
    assert "SmolLM3ForCausalLM" in known  # through transformers, on vLLM's own list
    assert not known & {"BertModel", "Qwen2ForSequenceClassification", "EAGLEModel"}
    assert len(known) > 200


@pytest.mark.parametrize(
    ("tokenizer", "generation", "model_config", "words"),
    [
        ({}, {"eos_token_id": [0, 1]}, {}, None),
        ({"eos_token": {"content": "<|endoftext|>"}}, {"eos_token_id": 0}, {}, None),
        ({}, {"eos_token_id": 1}, {}, "ends a sequence with '<|endoftext|>' (0), but generation_config.json with 1"),
        ({}, {"eos_token_id": [1, 2]}, {}, "generation_config.json with 1, 2: engines end at any of them"),
        ({}, None, {"eos_token_id": 7}, "config.json with 7"),
        ({}, None, {"eos_token_id": None}, None),
        ({"eos_token": None}, {"eos_token_id": None}, {}, "nor generation_config.json names the token that ends"),
    ],
)
def test_tokenizer_and_configuration_agree_about_the_end(model, tokenizer, generation, model_config, words):
    change(model / "tokenizer_config.json", **tokenizer)
    change(model / "config.json", **model_config)
    if generation is None:
        (model / "generation_config.json").unlink()
    else:
        change(model / "generation_config.json", **generation)
    warnings = found(model)
    assert bool(warnings) is bool(words)
    for severity, rule, message in warnings:
        assert (severity, rule) == (Severity.WARNING, "model.end_tokens")
        assert words in message


def test_an_end_that_the_model_cannot_write_is_refused(model):
    change(model / "generation_config.json", eos_token_id=[0, 2345])
    ((severity, _, message),) = found(model)
    assert severity is Severity.ERROR
    assert "token 2345 is to end a sequence, but the model writes tokens below 2345 (vocab_size)" in message


def test_an_end_token_that_the_tokenizer_lacks_is_refused(model):
    change(model / "tokenizer_config.json", eos_token="<|ende|>")
    ((severity, _, message),) = found(model)
    assert severity is Severity.ERROR
    assert "eos_token '<|ende|>' is not in" in message


def test_the_end_is_read_from_the_tokens_that_were_added(model):
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text("{}")
    assert ModelFolder(model, "k").end_tokens == EndTokens("<|endoftext|>", None, (0,), "generation_config.json")
    change(model / "tokenizer_config.json", added_tokens_decoder={"5": {"content": "<|endoftext|>"}})
    assert ModelFolder(model, "k").end_tokens.tokenizer == 5


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 2 * 4 * 32 * 4 * 4 * 10),  # keys and values x heads x head x layers x float32 x tokens
        ({"num_key_value_heads": 1, "head_dim": 64}, 2 * 1 * 64 * 4 * 4 * 10),
        ({"layer_types": ["full_attention", "sliding_attention", "linear_attention"], "sliding_window": 4},
         2 * 4 * 32 * 4 * (10 + 4)),
        ({"kv_lora_rank": 512}, 0),
        ({"num_hidden_layers": None}, 0),
        ({"text_config": {"num_hidden_layers": 1}}, 2 * 4 * 32 * 4 * 10),
    ],
)  # fmt: skip
def test_the_memory_of_keys_and_values(model, changes, count):
    change(model / "config.json", layer_types=None)
    change(model / "config.json", **changes)
    assert read_model_facts(model, "k").cache_bytes(tokens=10, item_bytes=4) == count
