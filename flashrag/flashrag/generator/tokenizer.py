"""The tokenizer beside a model, and the tokens that end a sequence."""

import json
from pathlib import Path
from typing import Any

from flashrag.errors import UserError
from flashrag.generator.model_folder import check_tokenizer_folder, local_folder

KEY = "generator_model"


def check_model_path(path: str) -> None:
    """Raise `UserError` when `path` is meant as a folder and holds no tokenizer; a hub's name is left to the loader."""
    if folder := local_folder(path, KEY):
        check_tokenizer_folder(folder, KEY)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of the model at `path`; raises `UserError` when there is none."""
    check_model_path(path)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # a damaged file makes the loader raise whatever it stumbles over
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{KEY}={path}: its tokenizer cannot be loaded ({type(error).__name__}: {reason})") from error


def eos_token_ids(tokenizer: Any, path: str) -> list[int]:
    """The ids at which engines end a sequence: the tokenizer's own and those of generation_config.json, in this order.

    Raises `UserError` when there is none: every response would then run until its budget ends.
    """
    ids = [tokenizer.eos_token_id, *_configured_eos_ids(path)]
    ids = [token_id for token_id in dict.fromkeys(ids) if token_id is not None]
    if not ids:
        raise UserError(f"{KEY}={path}: neither its tokenizer nor its generation config has an EOS token")
    return ids


def _configured_eos_ids(path: str) -> list[int | None]:
    """`eos_token_id` of generation_config.json, an optional file."""
    if Path(path).is_dir():
        file = Path(path) / "generation_config.json"
        try:
            ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{file} cannot be read ({error}); expected a JSON object") from error
    else:
        from transformers import GenerationConfig  # imports torch: only for a hub's name

        try:
            ids = GenerationConfig.from_pretrained(path).eos_token_id
        except OSError:
            ids = None
    return ids if isinstance(ids, list) else [ids]
