"""The folder of a language model: its required files, its tokenizer, the tokens that end a sequence. No torch here.

`key` is the flag or config key that an error names. Does not cover: encoders (retriever/encoder_folder.py).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from flashrag.errors import UserError

KEY = "generator_model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
HUB_TIMEOUT_S = 5.0
PROBE = "In 1234, who was king?\n\n<search> It's the Zhou of 漢. </search>"
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
    check_config(folder, key)
    check_weights(folder, key)
    check_tokenizer_folder(folder, key)


def check_config(folder: Path, key: str) -> None:
    """Raise `UserError` unless the folder holds a model's configuration."""
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{key}={folder} {problem}; give the folder of a Hugging Face model")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{key}={folder} holds no config.json; expected a Hugging Face model folder. A training checkpoint "
            "becomes one with: scripts/export_checkpoint.sh CHECKPOINT OUT"
        )


def read_json_object(file: Path, key: str) -> dict[str, Any]:
    """The object in a file of the model's folder; raises `UserError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))  # transformers takes no byte order mark either
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {file} cannot be read ({error}); copy it again") from error
    return content


def check_weights(folder: Path, key: str) -> None:
    """Raise `UserError` unless the folder holds weights."""
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise UserError(f"{key}={folder} holds no weights ({' or '.join(WEIGHTS)}); export or download the model again")


def check_tokenizer_folder(folder: Path, key: str) -> None:
    """Raise `UserError` unless the folder holds a file that a tokenizer can be loaded from."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{key}={folder} holds no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}: copy those of the base "
            "model there"
        )


def check_model_path(path: str, key: str = KEY) -> None:
    """Raise `UserError` unless `path` is a folder with a tokenizer, or a name that the hub or its cache knows."""
    if folder := local_folder(path, key):
        check_tokenizer_folder(folder, key)
    else:
        check_hub_name(path, key)


def check_hub_name(name: str, key: str) -> None:
    """Raise `UserError` unless the model is in the hub's cache on this machine, or the hub answers that it has it."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        if not isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            huggingface_hub.model_info(name, timeout=HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise UserError(f"{key}={name} is neither a folder nor the name of a model ({error}); give one") from error
    except Exception as error:  # refused, unknown, gated, no network: several libraries' own types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{key}={name} is no folder here, is not in the hub's cache, and the hub did not confirm it ({reason}); "
            "give the folder of a Hugging Face model"
        ) from error


def load_tokenizer(path: str, key: str = KEY) -> Any:
    """The tokenizer of the model at `path`; raises `UserError` when there is none."""
    check_model_path(path, key)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = tokenizer.encode(PROBE, add_special_tokens=False)
        tokenizer.decode(ids)  # some damage shows at the first use
        own_ids = _ids_by_file(path)
    except Exception as error:  # a damaged file can make the loader raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{key}={path}: its tokenizer cannot be loaded ({type(error).__name__}: {reason})") from error
    if own_ids not in (None, ids):
        raise UserError(
            f"{key}={path}: transformers loads its tokenizer as a {type(tokenizer).__name__}, which makes other tokens "
            'of a text than its tokenizer.json; write "tokenizer_class": "PreTrainedTokenizerFast" into '
            "tokenizer_config.json"
        )
    return tokenizer


def _ids_by_file(path: str) -> list[int] | None:
    """The ids of `PROBE` by tokenizer.json alone, None without one.

    transformers makes the tokenizers of some classes anew from the vocabulary, with rules of the class.
    """
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    try:
        file = cached_file(path, "tokenizer.json")
    except OSError:
        return None
    return Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids


def eos_token_ids(tokenizer: Any, path: str, key: str = KEY) -> list[int]:
    """The ids at which engines end a sequence: the tokenizer's own and those of generation_config.json, in this order.

    Raises `UserError` when there is none: every response would then run until its budget ends.
    """
    ids = [tokenizer.eos_token_id, *_configured_eos_ids(path, key)]
    ids = [token_id for token_id in dict.fromkeys(ids) if token_id is not None]
    if not ids:
        raise UserError(f"{key}={path}: neither its tokenizer nor its generation config has an EOS token")
    return ids


def _configured_eos_ids(path: str, key: str) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, an optional file, in a folder or under a hub's name."""
    from transformers.utils import cached_file

    try:
        file = Path(cached_file(path, "generation_config.json"))
    except OSError:
        return ()
    return _end_ids(file, key)


def _end_ids(file: Path, key: str) -> tuple[int, ...]:
    """`eos_token_id` of a file of the folder; raises `UserError` unless it holds numbers of tokens, or nothing."""
    value = read_json_object(file, key).get("eos_token_id")
    ids = tuple(one for one in (value if isinstance(value, list) else [value]) if one is not None)
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
        raise UserError(f"{key}: {file}: eos_token_id is {value!r}; expected the number of a token, or a list of them")
    return ids


class EndTokens(NamedTuple):
    """The tokens that end a sequence, by the files of a folder: engines end at each of them.

    `text` and `tokenizer` (its id) are None where the files do not tell; `configured` are the ids of the file `source`.
    """

    text: str | None
    tokenizer: int | None
    configured: tuple[int, ...]
    source: str


def read_end_tokens(folder: Path, key: str) -> EndTokens:
    """The end of a sequence by the folder's files, without transformers; raises `UserError` if one cannot be read."""
    source = "generation_config.json" if (folder / "generation_config.json").is_file() else "config.json"
    configured = _end_ids(folder / source, key)
    text, added = None, None
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings = read_json_object(folder / name, key)
            token = settings.get("eos_token")
            text = (token.get("content") if isinstance(token, dict) else token) or text
            added = settings.get("added_tokens_decoder")
    return EndTokens(text, _token_id(folder, key, text, added) if text else None, configured, source)


def _token_id(folder: Path, key: str, text: str, added: Any) -> int | None:
    for number, token in added.items() if isinstance(added, dict) else ():
        if isinstance(token, dict) and token.get("content") == text and number.isdecimal():
            return int(number)
    if not (file := folder / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer

    try:
        number = Tokenizer.from_file(str(file)).token_to_id(text)
    except Exception as error:  # the library raises nothing more exact
        raise UserError(f"{key}: {file} cannot be read ({error}); copy that of the base model there") from error
    if number is None:
        raise UserError(
            f"{key}: the tokenizer's eos_token {text!r} is not in {file}; copy both files of the base model"
        )
    return number
