"""What config.json and the headers of the weights say, and what is said about damaged ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from flashrag.errors import UserError
from flashrag.generator import ModelFacts, read_model_facts

REPOSITORY = Path(__file__).parents[3]


def model(folder: Path, config: Any, tensors: dict[str, list[int]], name: str = "model.safetensors") -> Path:
    """A folder with a config and float32 tensors of these shapes, written as the format is documented."""
    header, end = {}, 0
    for tensor, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_demos_model():
    facts = read_model_facts(REPOSITORY / "training" / "demo" / "base_model", "--model_path")
    assert facts == ModelFacts(
        architecture="Qwen2ForCausalLM",
        positions=2048,
        attention_heads=4,
        vocabulary=2345,
        parameters=1_154_816,  # 2345·128 + 4 layers of 213,632 + 128
        largest_tensor=300_160,  # 2345·128
        weight_bytes=4_624_544,
    )


def test_shards_are_counted_together(tmp_path):
    model(tmp_path, {}, {"a": [3, 4]}, "model-1.safetensors")
    model(tmp_path, {"model_type": "new"}, {"b": [5], "c": []}, "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    facts = read_model_facts(tmp_path, "--model_path")
    assert (facts.architecture, facts.parameters, facts.largest_tensor) == ("new", 12 + 5 + 1, 12)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"1 of 2 weight files are missing \(model-2\.safetensors, …\)"):
        read_model_facts(tmp_path, "--model_path")


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({}, None),
        ({"max_position_embeddings": "2048"}, None),
        ({"text_config": {"max_position_embeddings": 8192}, "max_position_embeddings": 1}, 8192),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 2.0}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "default"}}, 64),
    ],
)
def test_the_longest_sequence(tmp_path, config, positions):
    assert read_model_facts(model(tmp_path, config, {"a": [1]}), "--model_path").positions == positions


def test_weights_in_another_format_have_no_count(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345")
    facts = read_model_facts(tmp_path, "--model_path")
    assert (facts.parameters, facts.weight_bytes, facts.architecture) == (None, 5, "unknown")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "model.safetensors is damaged"),
        (b"\xff" * 8, "a header of 18446744073709551615 bytes"),
        (b"\x02\0\0\0\0\0\0\0[]", "is damaged"),
        (b'\x1f\0\0\0\0\0\0\0{"a":{"data_offsets":[0,1000]}}', r"39 of 1039 bytes are there"),
    ],
)
def test_damaged_weights_are_named(tmp_path, content, words):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_model_facts(tmp_path, "--model_path")


LAYERS = {f"model.layers.{number}.mlp.weight": [4, 4] for number in range(2)}
TENSORS = {"model.embed_tokens.weight": [9, 4], **LAYERS}
SIZES = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vocab_size": 10}, "config.json has vocab_size=10, but the weights have 9 rows of embeddings"),
        ({"hidden_size": 5}, "config.json names no size 4, which the embeddings in the weights have"),
        ({"num_hidden_layers": 3}, "config.json has num_hidden_layers=3, but the weights have 2 layers"),
    ],
)
def test_weights_of_another_model_than_the_config_s_are_refused(tmp_path, changed, words):
    with pytest.raises(UserError, match=f"{words}; copy config.json and the weights from the same model"):
        read_model_facts(model(tmp_path, SIZES | changed, TENSORS), "--model_path")


@pytest.mark.parametrize(
    "config",
    [
        SIZES,
        {"vocab_size": 9, "d_model": 4},  # the width has another name
        {**SIZES, "num_hidden_layers": 1},  # one more layer that predicts further tokens
        {"text_config": SIZES, "hidden_size": 7},
        {**SIZES, "vocab_size": 10, "quantization_config": {"quant_method": "awq"}},  # packed
    ],
)
def test_weights_that_may_be_the_config_s_are_taken(tmp_path, config):
    assert read_model_facts(model(tmp_path, config, TENSORS), "--model_path").parameters == 9 * 4 + 2 * 4 * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json cannot be read"),
        ("[]", "holds a list, expected an object"),
        ("\ufeff{}", "Unexpected UTF-8 BOM"),
    ],
)
def test_a_damaged_config_is_named(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_model_facts(tmp_path, "--model_path")
