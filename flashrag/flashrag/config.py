"""Configuration with FlashRAG's keys: a YAML file with a dict on top, and validation into a typed model.

`Config` is the mapping that FlashRAG's users know. `validated` turns such a mapping into a pydantic model of the
caller's keys (the server's, the evaluation's). Light: no torch, no faiss.
Does not cover: default values (each model states its own), command-line flags.
"""

import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from flashrag.errors import UserError, did_you_mean

TOKEN_VARIABLE = "RESEARCH_SERVER_TOKEN"  # the retrieval server's bearer token, in its environment and its clients'
Model = TypeVar("Model", bound=BaseModel)


class Config(Mapping[str, Any]):
    """The keys of `config_file_path` overlaid with `config_dict`; read as items or as attributes.

    As in FlashRAG, an item that is not set reads as None. An attribute that is not set raises AttributeError.

    >>> config = Config(config_dict={"retrieval_topk": 5})
    >>> config.retrieval_topk, config["retrieval_topk"], config["index_path"]
    (5, 5, None)
    """

    def __init__(
        self, config_file_path: str | Path | None = None, config_dict: Mapping[str, Any] | None = None
    ) -> None:
        self._values: dict[str, Any] = {
            **(read_yaml_mapping(Path(config_file_path)) if config_file_path is not None else {}),
            **(config_dict or {}),
        }

    def __getitem__(self, key: str) -> Any:
        return self._values.get(key)

    def __getattr__(self, key: str) -> Any:
        # Only called for names that are not attributes; `_values` is missing while the object is being unpickled.
        if key != "_values" and key in self._values:
            return self._values[key]
        raise AttributeError(f"config key {key!r} is not set")

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Config({sorted(self._values)})"  # keys only: values may hold API keys


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML file, {} for an empty one. Raises UserError if it cannot be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config file not found: {path}; give the path of a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config file {path} is not valid YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        given = type(content).__name__
        raise UserError(f"config file {path} holds {given}; expected `key: value` lines with text keys")
    return content


def validated(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """`values` as a `model`; raises a UserError that names `source`, the key, the given value and the expected one."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            message = f"unknown key {key!r}{suggestion(str(problem['loc'][-1]), _keys_beside(model, problem['loc']))}"
        elif problem["type"] == "missing":
            message = f"{key} is not set; give it a value"
        elif not key:  # a rule over several keys, whose message names them
            message = problem["msg"].removeprefix("Value error, ")
        else:
            message = f"{key}: {problem['input']!r} was given; {problem['msg'].removeprefix('Value error, ')}"
        raise UserError(f"{source}: {message}") from error


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that a field with this annotation holds, None if it holds none; the annotation may be a union."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _keys_beside(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The valid keys of the mapping that holds the key at `location`."""
    inner: type[BaseModel] | None = model
    for part in location[:-1]:
        field = inner.model_fields.get(str(part)) if inner else None
        inner = inner_model(field.annotation) if field else None
    return list(inner.model_fields) if inner else []


def suggestion(key: str, known: Iterable[str]) -> str:
    """`; did you mean …?` if a known key is similar, else the list of known keys."""
    known = sorted(known)
    return did_you_mean(key, known) or f"; known keys: {', '.join(known)}"
