"""What the files of a language model say about it, read in milliseconds: no torch, no weights in memory.

`config.json` gives the shapes, the headers of the safetensors files give the number of parameters. `key` is the flag or
config key that an error names. Does not cover: the tokenizer, the tokens that end a sequence (model_folder.py).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashrag.errors import UserError
from flashrag.generator.model_folder import WEIGHTS, read_json_object

MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
SHARDS = "model.safetensors.index.json"
# The table of a text model's tokens, and the number of a layer in a tensor's name.
EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "embed_in.weight")
_LAYER = re.compile(r"(?:language_model\.)?model\.(?:language_model\.)?layers\.(\d+)\.")
# The kinds of RoPE scaling that stretch `max_position_embeddings`; others state the stretched length there.
STRETCHED = ("linear", "dynamic", "yarn")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Counts are None where the files do not tell: a config without that key, weights that are no safetensors."""

    architecture: str
    positions: int | None  # the longest sequence in tokens, prompt and response together
    attention_heads: int | None
    vocabulary: int | None
    parameters: int | None
    largest_tensor: int | None  # elements
    weight_bytes: int
    # The part of config.json about reading and writing text.
    language: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def count(self, *names: str) -> int | None:
        """The first of these keys of the config that is a whole number."""
        return _count(self.language, *names)

    def cache_bytes(self, tokens: int, item_bytes: int) -> int:
        """Memory for the keys and values of one sequence; 0 for a model that keeps something else."""
        layers, heads = self.count("num_hidden_layers") or 0, self.count("num_attention_heads") or 0
        if not layers or not heads or self.count("kv_lora_rank") is not None:
            return 0
        head = self.count("head_dim") or (self.count("hidden_size") or 0) // heads
        a_token = 2 * (self.count("num_key_value_heads") or heads) * head * item_bytes
        window = min(self.count("sliding_window") or tokens, tokens)
        kept = {"full_attention": tokens, "sliding_attention": window, "chunked_attention": tokens}
        kinds = self.language.get("layer_types")
        kinds = kinds if kinds and isinstance(kinds, list) else ["full_attention"] * layers
        return sum(a_token * kept.get(str(kind), 0) for kind in kinds)


def read_model_facts(folder: Path, key: str) -> ModelFacts:
    """Raises `UserError` naming a file that is missing, damaged, cut off, or of another model than the others."""
    config = read_json_object(folder / "config.json", key)
    text, shapes = language_config(config), _tensor_shapes(folder, key)
    if "quantization_config" not in config and (problem := other_model(text, shapes)):
        raise UserError(f"{key}={folder}: {problem}; copy config.json and the weights from the same model")
    sizes = [math.prod(shape) for shape in shapes.values()]
    names, kind = config.get("architectures"), config.get("model_type", "unknown")
    return ModelFacts(
        architecture=", ".join(map(str, names if names and isinstance(names, list) else [kind])),
        positions=_positions(text),
        attention_heads=_count(text, "num_attention_heads", "n_head"),
        vocabulary=_count(text, "vocab_size"),
        parameters=sum(sizes) if sizes else None,
        largest_tensor=max(sizes, default=None),
        weight_bytes=sum(path.stat().st_size for pattern in WEIGHTS for path in folder.glob(pattern)),
        language=text,
    )


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the part of a model that reads and writes text."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _count(config: Mapping[str, Any], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def _positions(config: Mapping[str, Any]) -> int | None:
    positions = _count(config, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if positions is None or not isinstance(scaling, Mapping):
        return positions
    if scaling.get("rope_type", scaling.get("type")) not in STRETCHED:
        return positions
    factor = scaling.get("factor")
    original = _count(scaling, "original_max_position_embeddings") or positions
    return int(original * factor) if isinstance(factor, int | float) and math.isfinite(factor) else positions


def other_model(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> str:
    """Why the weights, by the shapes of their tensors, are not those of this configuration; "" if nothing shows it.

    >>> other_model({"vocab_size": 9, "hidden_size": 4}, {"model.embed_tokens.weight": [10, 4]})
    'config.json has vocab_size=9, but the weights have 10 rows of embeddings'
    """
    tables = [shape for name, shape in shapes.items() if name.endswith(EMBEDDINGS) and len(shape) == 2]
    if len(tables) == 1 and isinstance(rows := config.get("vocab_size"), int):
        if tables[0][0] != rows:
            return f"config.json has vocab_size={rows}, but the weights have {tables[0][0]} rows of embeddings"
        if tables[0][1] not in config.values():  # under a name that differs between families
            return f"config.json names no size {tables[0][1]}, which the embeddings in the weights have"
    numbers = {int(found[1]) for name in shapes if (found := _LAYER.match(name))}
    layers = _count(config, "num_hidden_layers")
    if numbers and layers is not None and len(numbers) < layers:
        return f"config.json has num_hidden_layers={layers}, but the weights have {len(numbers)} layers"
    return ""


def _tensor_shapes(folder: Path, key: str) -> dict[str, list[int]]:
    """The shape of each tensor in the safetensors files."""
    paths = sorted(folder.glob("*.safetensors"))
    if (index := folder / SHARDS).is_file():
        paths = _shards(index, key)
    return {name: shape for path in paths for name, shape in _shapes_in_header(path, key).items()}


def _shards(index: Path, key: str) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{key}={index.parent}: {index.name} cannot be read ({error!r}); copy it again") from error
    if missing := sorted(name for name in names if not (index.parent / name).is_file()):
        raise UserError(
            f"{key}={index.parent}: {len(missing)} of {len(names)} weight files are missing ({missing[0]}, …); copy "
            "the model again"
        )
    return [index.parent / name for name in sorted(names)]


def _shapes_in_header(path: Path, key: str) -> dict[str, list[int]]:
    """A safetensors file begins with the length of its header (8 bytes, little-endian), then the header as JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if path.stat().st_size < end:
            raise ValueError(f"{path.stat().st_size} of {end} bytes are there")
        shapes = {name: [int(length) for length in tensor["shape"]] for name, tensor in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{key}={path.parent}: {path.name} is damaged ({error}); copy the model again") from error
    return shapes
