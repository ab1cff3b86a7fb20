"""What the files of a language model say about it, read in milliseconds: no torch, no weights in memory.

`config.json` gives the shapes, the headers of the safetensors files give the number of parameters. `key` is the flag or
config key that an error names. Does not cover: the tokenizer, the tokens that end a sequence (model_folder.py).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashrag.errors import UserError
from flashrag.generator.model_folder import WEIGHTS, read_json_object

MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
SHARDS = "model.safetensors.index.json"
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
    """Raises `UserError` naming a file that is missing, damaged or cut off."""
    config = read_json_object(folder / "config.json", key)
    text, sizes = language_config(config), _tensor_sizes(folder, key)
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


def _tensor_sizes(folder: Path, key: str) -> list[int]:
    """The number of elements of each tensor in the safetensors files."""
    paths = sorted(folder.glob("*.safetensors"))
    if (index := folder / SHARDS).is_file():
        paths = _shards(index, key)
    return [size for path in paths for size in _sizes_in_header(path, key)]


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


def _sizes_in_header(path: Path, key: str) -> list[int]:
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
        return [math.prod(tensor["shape"]) for tensor in header.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{key}={path.parent}: {path.name} is damaged ({error}); copy the model again") from error
