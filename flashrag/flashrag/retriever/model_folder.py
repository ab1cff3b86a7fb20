"""What an encoder's folder says about itself: where it is, what it is, how its vectors are made. No torch here.

The pooling and instruction rules are FlashRAG's: an explicit value, else the folder's own sentence-transformers
settings, else the rule for the method's name (e5: mean and "query: " / "passage: "; bge: cls and a query sentence).
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
POOLING_BY_NAME = {"e5": "mean", "bge": "cls", "contriever": "mean"}
DEFAULT_POOLING = "mean"


@dataclass(frozen=True)
class Instructions:
    """What is put before a text ahead of encoding it."""

    query: str
    passage: str


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
        raise UserError(f"{key}: {folder} holds no config.json, so it is no model folder; give the encoder's folder")
    if not weight_files(folder):
        raise UserError(f"{key}: {folder} holds no weights (*.safetensors or *.bin); download the encoder again")
    return folder


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)


def model_sha256(folder: Path) -> str:
    """Fingerprint of the encoder: its configuration and its weights, wherever the folder stands."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weight_files(folder)]:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def pooling_method(folder: Path, retrieval_method: str, explicit: str | None) -> str:
    if explicit is not None:
        return explicit
    return own_pooling(folder) or _by_name(POOLING_BY_NAME, retrieval_method) or DEFAULT_POOLING


def own_pooling(folder: Path) -> str | None:
    """The pooling that the folder's sentence-transformers settings ask for; None where there are none, or another."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("pooling_mode_cls_token") or settings.get("pooling_mode") == "cls":
        return "cls"
    return "mean" if settings.get("pooling_mode_mean_tokens") or settings.get("pooling_mode") == "mean" else None


def instructions(retrieval_method: str) -> Instructions:
    return _by_name(INSTRUCTIONS_BY_NAME, retrieval_method) or Instructions(query="", passage="")


def _by_name(rules: dict[str, Rule], retrieval_method: str) -> Rule | None:
    return next((rule for name, rule in rules.items() if name in retrieval_method.lower()), None)
