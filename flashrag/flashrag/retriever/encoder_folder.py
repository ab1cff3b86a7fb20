"""An encoder's folder: where it is, its fingerprint, its pooling and its instructions. No torch here.

The pooling and instruction rules are FlashRAG's: an explicit value, else the folder's own sentence-transformers
settings, else the rule for the method's name (e5: mean and "query: " / "passage: "; bge: cls and a query sentence).
Source: FlashRAG's documentation of its configuration (`model2pooling`) and the model cards of e5 and bge.
Does not cover: choosing bge's instruction by the language of each query, as FlashRAG does; name the method bge-…-zh.
"""

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flashrag.corpus import file_sha256
from flashrag.errors import UserError

PACKAGE_MODEL_FOLDER = "model"
WEIGHT_SUFFIXES = {".safetensors", ".bin"}
TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model")
OWN_POOLING = "own"
PASSAGE_TOKENS = 256  # the rest of a passage is cut off, unless the builder is told otherwise


@dataclass(frozen=True)
class Family:
    """How the encoders of one family were trained: their pooling, and the texts before a query and a passage.

    `unit` says whether FlashRAG's builder gives their vectors unit length, as ours gives all.
    """

    in_name: Sequence[str] = ()
    pooling: str = "mean"
    query: str = ""
    passage: str = ""
    unit: bool = True


_RULES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FAMILIES = [Family(**values) for values in _RULES["families"]]


def family(retrieval_method: str) -> Family:
    """The family that the method's name tells; one without texts and with mean pooling where it tells none."""
    name = retrieval_method.lower()
    return next((found for found in FAMILIES if all(part in name for part in found.in_name)), Family())


def resolve_model_folder(value: str, key: str) -> Path:
    """The folder that `value` names: a folder, or an installed package that carries a `model` folder.

    `key` is the flag or config key that is named in the UserError.
    """
    folder = Path(value)
    if not folder.exists() and value.isidentifier():
        spec = importlib.util.find_spec(value)
        places = list(spec.submodule_search_locations or []) if spec else []
        carried = [Path(place) / PACKAGE_MODEL_FOLDER for place in places]
        folder = next((place for place in carried if place.is_dir()), folder)
    if not folder.is_dir():
        raise UserError(
            f"{key}: {value!r} is neither a folder nor an installed package with a `{PACKAGE_MODEL_FOLDER}` folder; "
            "download the encoder first (`hf download intfloat/e5-base-v2 --local-dir models/e5-base-v2`) "
            "and give its folder"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}: {folder} holds no config.json, so it is not a model folder; give the encoder's folder")
    if not weight_files(folder):
        raise UserError(f"{key}: {folder} holds no weights (*.safetensors or *.bin); download the encoder again")
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        raise UserError(f"{key}: {folder} holds no tokenizer ({', '.join(TOKENIZERS)}); download the encoder again")
    return folder


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)


def model_sha256(folder: Path) -> str:
    """Fingerprint of the encoder: its configuration and its weights, not the folder's path."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weight_files(folder)]:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def most_tokens(folder: Path) -> int | None:
    """The longest text that the encoder takes, in tokens; None where its files set no limit.

    The configuration of some families (RoBERTa, MPNet) counts two positions that no token can have; the tokenizer does
    not.
    """
    limits = (
        _settings(folder, "config.json").get("max_position_embeddings"),
        _settings(folder, "tokenizer_config.json").get("model_max_length"),
    )
    numbers = [limit for limit in limits if isinstance(limit, int | float) and 0 < limit < math.inf]
    return int(min(numbers)) if numbers else None


def embedding_dimension(folder: Path, pooling: str) -> int | None:
    """The dimension of the encoder's vectors; None where the folder's own modules change it, or nothing says it."""
    size = _settings(folder, "config.json").get("hidden_size")
    if not isinstance(size, int) or pooling == OWN_POOLING or any(folder.glob("*_Dense")):
        return None
    return size * len(pooling.split("+"))


def check_dimension(of_encoder: int, of_index: int) -> None:
    """Raise UserError unless the encoder makes vectors of the index's dimension."""
    if of_encoder != of_index:
        raise UserError(
            f"retrieval_model_path: the encoder makes {of_encoder} dimensions, but the index has {of_index}; give the "
            "encoder that it was built with, or build the index again"
        )


def _settings(folder: Path, name: str) -> dict[str, Any]:
    from flashrag.generator import read_json_object  # here: the clients of servers come with it

    path = folder / name
    return read_json_object(path, "the encoder") if path.is_file() else {}


def pooling_method(folder: Path, retrieval_method: str, explicit: str | None) -> str:
    return explicit or own_pooling(folder) or family(retrieval_method).pooling


def own_pooling(folder: Path) -> str | None:
    """The pooling that the folder's sentence-transformers settings ask for (several joined by `+`).

    None where there are no such settings, `own` where their modules pool in another way.
    """
    settings = _settings(folder, "1_Pooling/config.json")
    if not settings:
        return OWN_POOLING if (folder / "modules.json").is_file() else None
    modes = settings.get("pooling_mode") or [mode for key, mode in _RULES["pooling_flags"].items() if settings.get(key)]
    return "+".join(map(str, modes)) or "mean" if isinstance(modes, list) else str(modes)


def spaced(instruction: str) -> str:
    """An instruction as FlashRAG puts it before a text: one space after it; "" without an instruction.

    >>> spaced("query:"), spaced("")
    ('query: ', '')
    """
    return f"{instruction.strip()} " if instruction.strip() else ""
