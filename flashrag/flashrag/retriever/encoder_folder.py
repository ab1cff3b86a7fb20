"""An encoder's folder: where it is, its fingerprint, its pooling and its instructions. No torch here.

The pooling and instruction rules are FlashRAG's: an explicit value, else the folder's own sentence-transformers
settings, else the rule for the method's name (e5: mean and "query: " / "passage: "; bge: cls and a query sentence).
Source: FlashRAG's documentation of its configuration (`model2pooling`) and the model cards of e5 and bge.
Does not cover: choosing bge's instruction by the language of each query, as FlashRAG does; name the method bge-…-zh.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flashrag.corpus import file_sha256
from flashrag.errors import UserError

Rule = TypeVar("Rule")

PACKAGE_MODEL_FOLDER = "model"
WEIGHT_SUFFIXES = {".safetensors", ".bin"}
POOLING_BY_NAME = {"e5": "mean", "bge": "cls", "contriever": "mean", "dpr": "cls", "jina": "mean"}
DEFAULT_POOLING = "mean"
OWN_POOLING = "own"
POOLING_FLAGS = {  # as sentence-transformers wrote them before version 5
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Instructions:
    """The texts that are put before a query or a passage when it is encoded."""

    query: str
    passage: str


BGE_ZH = Instructions(query="为这个句子生成表示以用于检索相关文章：", passage="")
INSTRUCTIONS_BY_NAME = {
    "e5": Instructions(query="query: ", passage="passage: "),
    "bge": Instructions(query="Represent this sentence for searching relevant passages: ", passage=""),
}


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
    return folder


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)


def model_sha256(folder: Path) -> str:
    """Fingerprint of the encoder: its configuration and its weights, not the folder's path."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weight_files(folder)]:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def pooling_method(folder: Path, retrieval_method: str, explicit: str | None) -> str:
    if explicit is not None:
        return explicit
    return own_pooling(folder) or _by_name(POOLING_BY_NAME, retrieval_method) or DEFAULT_POOLING


def own_pooling(folder: Path) -> str | None:
    """The pooling that the folder's sentence-transformers settings ask for (several joined by `+`).

    None where there are no such settings, `own` where their modules pool in another way.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return OWN_POOLING if (folder / "modules.json").is_file() else None
    settings = json.loads(path.read_text(encoding="utf-8"))
    modes = settings.get("pooling_mode") or [mode for key, mode in POOLING_FLAGS.items() if settings.get(key)]
    return modes if isinstance(modes, str) else "+".join(modes) or DEFAULT_POOLING


def has_pooler(folder: Path) -> bool:
    """Whether the weights hold the layer that `pooler` reads; transformers would fill a missing one at random."""
    return any("pooler" in name for path in weight_files(folder) for name in _weight_names(path))


def _weight_names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":  # a torch archive, which holds its names uncompressed
        return ["pooler"] if b"pooler.dense.weight" in path.read_bytes() else []
    with path.open("rb") as file:  # safetensors: the header's length, then the header as JSON
        length = int.from_bytes(file.read(8), "little")
        try:
            return list(json.loads(file.read(min(length, path.stat().st_size))))
        except ValueError:
            return []


def instructions(retrieval_method: str) -> Instructions:
    name = retrieval_method.lower()
    if "bge" in name and "zh" in name:
        return BGE_ZH
    return _by_name(INSTRUCTIONS_BY_NAME, retrieval_method) or Instructions(query="", passage="")


def spaced(instruction: str) -> str:
    """An instruction as FlashRAG puts it before a text: one space after it; "" without an instruction.

    >>> spaced("query:"), spaced("")
    ('query: ', '')
    """
    return f"{instruction.strip()} " if instruction.strip() else ""


def _by_name(rules: dict[str, Rule], retrieval_method: str) -> Rule | None:
    return next((rule for name, rule in rules.items() if name in retrieval_method.lower()), None)
