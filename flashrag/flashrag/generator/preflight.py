"""What can be wrong with the folder of a language model: facts from its JSON files and headers, without torch.

`MODEL_RULES` are for every command that serves or trains the model of a folder; `known_to_vllm` where vLLM runs it.
Does not cover: models under a hub's name, encoders (retriever/preflight).
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from flashrag.errors import did_you_mean
from flashrag.generator.model_facts import ModelFacts, language_config, read_model_facts
from flashrag.generator.model_folder import (
    EndTokens,
    check_config,
    check_tokenizer_folder,
    check_weights,
    read_end_tokens,
    read_json_object,
)
from flashrag.preflight import Finding, error, fact, gathered, warning

# The tables of vLLM's registry that hold models which write text. Read as text: importing vLLM takes many seconds.
VLLM_REGISTRY = "model_executor/models/registry.py"
VLLM_TABLES = {
    "_TEXT_GENERATION_MODELS",
    "_MULTIMODAL_MODELS",
    "_TRANSFORMERS_SUPPORTED_MODELS",
    "_TRANSFORMERS_BACKEND_MODELS",
}
TRANSFORMERS_TABLE = "models/auto/modeling_auto.py"
GENERATES = ("ForCausalLM", "ForConditionalGeneration")


class ModelFolder:
    """The facts of a model in `folder`, which the flag or key `key` gave."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    @fact
    def model_config(self) -> Mapping[str, Any]:
        check_config(self.folder, self.key)
        return read_json_object(self.folder / "config.json", self.key)

    @fact
    def architecture(self) -> str:
        """The class that runs the model; "" where the configuration names none."""
        names = self.model_config.get("architectures")
        return str(names[0]) if names and isinstance(names, list) else ""

    @fact
    def language_config(self) -> Mapping[str, Any]:
        """The configuration of the part that reads and writes text."""
        return language_config(self.model_config)

    @fact
    def model(self) -> ModelFacts:
        check_config(self.folder, self.key)
        check_weights(self.folder, self.key)
        return read_model_facts(self.folder, self.key)

    @fact
    def end_tokens(self) -> EndTokens:
        check_config(self.folder, self.key)
        check_tokenizer_folder(self.folder, self.key)
        return read_end_tokens(self.folder, self.key)


def config(facts: ModelFolder) -> Iterator[Finding]:
    if not facts.architecture:
        yield error(f"{facts.key}={facts.folder}: config.json names no architectures; take that of the base model")
    if not facts.model_config.get("model_type"):
        yield error(f"{facts.key}={facts.folder}: config.json names no model_type; take that of the base model")


def end_tokens_agree(facts: ModelFolder) -> Iterator[Finding]:
    """An engine ends a sequence at each of these tokens, so each must be one that the model writes at the end."""
    ends, where = facts.end_tokens, f"{facts.key}={facts.folder}"
    if ends.tokenizer is None and not ends.configured:
        yield warning(
            f"{where}: neither tokenizer_config.json nor {ends.source} names the token that ends a sequence; without "
            "one every response runs until its budget ends: set eos_token_id in generation_config.json"
        )
    elif ends.tokenizer is not None and ends.configured and ends.tokenizer not in ends.configured:
        yield warning(
            f"{where}: its tokenizer ends a sequence with {ends.text!r} ({ends.tokenizer}), but {ends.source} with "
            f"{', '.join(map(str, ends.configured))}: engines end at any of them. Set eos_token_id in {ends.source} to "
            "the token that the model was trained to end with"
        )
    vocabulary = facts.language_config.get("vocab_size")
    ids = [number for number in (ends.tokenizer, *ends.configured) if number is not None]
    if isinstance(vocabulary, int) and (beyond := [number for number in ids if number >= vocabulary]):
        yield error(
            f"{where}: token {beyond[0]} is to end a sequence, but the model writes tokens below {vocabulary} "
            "(vocab_size); take the tokenizer and the generation config that belong to this model"
        )


MODEL_RULES = {"model.config": config, "model.weights": gathered("model"), "model.end_tokens": end_tokens_agree}


def known_to_vllm(facts: ModelFolder) -> Iterator[Finding]:
    """Findings about the architecture of a model that the installed vLLM is to run; none where there is no vLLM."""
    name, known = facts.architecture, vllm_architectures()
    if not name or not known or name in known:
        return
    where = f"{facts.key}={facts.folder}: architecture {name!r}"
    if "auto_map" in facts.model_config:
        yield warning(f"{where} comes with Python code of its own; vLLM runs it only with --trust-remote-code")
    elif name.endswith(GENERATES) and f'"{name}"' in _source("transformers", TRANSFORMERS_TABLE):
        yield warning(f"{where} is not among vLLM's own: it runs through transformers, if at all, and more slowly")
    else:
        yield error(
            f"{where} is none that the installed vLLM can generate with{did_you_mean(name, known)}; give a model for "
            "generation, or install a vLLM that knows it"
        )


def can_be_trained(facts: ModelFolder) -> Iterator[Finding]:
    """Findings about a model whose weights are to be trained, and that vLLM samples from."""
    yield from known_to_vllm(facts)
    if (quantization := facts.model_config.get("quantization_config")) is not None:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        yield error(
            f"{facts.key}={facts.folder}: its weights are quantized ({method}), and such weights are not trained; give "
            "the model that they were made from"
        )


@cache
def vllm_architectures() -> frozenset[str]:
    """The architectures that the installed vLLM generates with; empty without vLLM."""
    tables = [
        node.value
        for node in ast.parse(_source("vllm", VLLM_REGISTRY)).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in VLLM_TABLES
    ]
    keys = [key for table in tables if isinstance(table, ast.Dict) for key in table.keys]
    return frozenset(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _source(package: str, module: str) -> str:
    """The text of an installed module, without importing it; empty where it is not installed."""
    spec = importlib.util.find_spec(package)
    places = [Path(place) / module for place in (spec.submodule_search_locations if spec else None) or ()]
    return next((place.read_text(encoding="utf-8") for place in places if place.is_file()), "")
