"""What makes a folder a language model that can be loaded, and how a user is told what it lacks. No torch here.

`key` is the flag or config key that the errors name. Does not cover: encoders (retriever/model_folder.py).
"""

from pathlib import Path

from flashrag.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def local_folder(path: str, key: str) -> Path | None:
    """The folder that `path` means; None for a hub's name. Raises `UserError` when there is no such folder."""
    folder = Path(path)
    if folder.exists():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{key}={path} does not exist; give the folder of a Hugging Face model")
    return None


def check_model_folder(folder: Path, key: str) -> None:
    """Raise `UserError` unless the folder holds a Hugging Face model: configuration, weights, tokenizer."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{key}={folder} holds no config.json; expected a Hugging Face model folder. A training checkpoint "
            "becomes one with: scripts/export_checkpoint.sh CHECKPOINT OUT"
        )
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise UserError(f"{key}={folder} holds no weights ({' or '.join(WEIGHTS)}); export or download the model again")
    check_tokenizer_folder(folder, key)


def check_tokenizer_folder(folder: Path, key: str) -> None:
    """Raise `UserError` unless the folder holds a file that a tokenizer can be loaded from."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{key}={folder} holds no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}: copy those of the base "
            "model there"
        )
