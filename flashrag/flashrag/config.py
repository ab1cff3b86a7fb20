"""Configuration with FlashRAG's keys: a YAML file with a dict on top, and validation into a typed model.

`Config` is the mapping that FlashRAG's users know. `validated` turns such a mapping into a pydantic model of the
caller's keys (the server's, the evaluation's). Light: no torch, no faiss.
Does not cover: default values (each model states its own), command-line flags.
"""

import types
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from flashrag.errors import UserError, did_you_mean

TOKEN_VARIABLE = "RESEARCH_SERVER_TOKEN"  # the retrieval server's bearer token, in its environment and its clients'
MOST_SHOWN = 200  # characters of a bad value
Model = TypeVar("Model", bound=BaseModel)


class Config(dict[str, Any]):
    """The keys of `config_file_path` overlaid with `config_dict`; read as items or as attributes.

    As in FlashRAG, an item that is not set reads as None. An attribute that is not set raises AttributeError.

    >>> config = Config(config_dict={"retrieval_topk": 5})
    >>> config.retrieval_topk, config["retrieval_topk"], config["index_path"]
    (5, 5, None)
    """

    def __init__(
        self, config_file_path: str | Path | None = None, config_dict: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(read_yaml_mapping(Path(config_file_path)) if config_file_path is not None else {})
        self.update(config_dict or {})

    def __missing__(self, key: str) -> None:
        return None

    def __getattr__(self, key: str) -> Any:  # only called for names that are not attributes
        if key in self:
            return self[key]
        raise AttributeError(f"config key {key!r} is not set")

    def __repr__(self) -> str:
        return f"Config({sorted(self)})"  # keys only: values may hold API keys


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which no key of a mapping stands twice: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        times = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := next((name for name, count in times.items() if count > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML file, {} for an empty one. Raises UserError if it cannot be read."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_EachKeyOnce)
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
    except UserError as error:  # of a validator that calls one of our own checks, whose message names the key
        raise UserError(f"{source}: {error}") from error
    except ValidationError as error:
        raise UserError(f"{source}: {first_problem(error, model)}") from error


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with the first bad value of a `model`: its key, the value and what was expected."""
    problem = error.errors(include_url=False)[0]
    key, message = ".".join(str(part) for part in problem["loc"]), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}{suggestion(str(problem['loc'][-1]), _keys_beside(model, problem['loc']))}"
    if problem["type"] == "missing":
        return f"{key} is not set; give it a value"
    given = repr(problem["input"])
    given = given if len(given) <= MOST_SHOWN else f"{given[: MOST_SHOWN - 1]}…"
    return f"{key}: {given} was given; {message}" if key else message  # a rule over several names its keys


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
