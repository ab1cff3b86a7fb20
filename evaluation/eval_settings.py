"""The settings of an evaluation: the keys of eval_config.yaml, overridden by flags of the same names.

Covers what is asked for, not whether it is there: servers and files are checked by run_eval.py.
"""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from flashrag.client import check_search_url
from flashrag.config import read_yaml_mapping, suggestion, validated
from flashrag.dataset import DatasetSettings
from flashrag.errors import UserError
from flashrag.generator import GeneratorSettings
from flashrag.pipeline import PipelineSettings
from flashrag.retriever import RetrieverSettings

METHODS = ("research",)
METRICS = ("em", "f1", "acc")
RETRIEVER_KEYS = frozenset(RetrieverSettings.model_fields) - {"retrieval_topk"}


class EvalSettings(DatasetSettings, GeneratorSettings, PipelineSettings):
    """Everything that eval_config.yaml and the flags can say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method_name: Literal["research"]
    split: str = Field(min_length=1)
    save_dir: Path
    save_note: str | None = Field(None, pattern=r"^[\w.-]+$", description="names the run's folder in place of the time")
    save_metric_score: bool = True
    save_intermediate_data: bool = True
    use_remote_retriever: bool = True
    remote_retriever_url: str | None = None
    retriever: dict[str, Any] = Field(default_factory=dict, description="the keys of a local retriever, put together")
    metrics: tuple[str, ...] = METRICS
    metric_setting: dict[str, Any] = Field(default_factory=dict, description="FlashRAG's; no metric here has a setting")

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in METRICS:
                raise ValueError(f"{name!r} is no metric here; choose from {', '.join(METRICS)}")
        if not names:
            raise ValueError(f"choose at least one of {', '.join(METRICS)}")
        return names

    @model_validator(mode="after")
    def _check_retriever(self) -> "EvalSettings":
        if not self.use_remote_retriever:
            validated(RetrieverSettings, {**self.retriever, "retrieval_topk": self.retrieval_topk}, "local retriever")
            return self
        if self.remote_retriever_url is None:
            raise ValueError("use_remote_retriever is true, but remote_retriever_url is not set; give its address")
        try:
            check_search_url(self.remote_retriever_url, "remote_retriever_url")
        except UserError as error:
            raise ValueError(str(error)) from error
        return self


class CommandLine(NamedTuple):
    """The flags of run_eval.py: where the configuration is, and what is put on top of it."""

    config_path: Path
    overrides: dict[str, Any]


def parse_command_line(argv: Sequence[str] | None = None) -> CommandLine:
    """Read the flags; raises `UserError` for an unknown one."""
    parser = _parser()
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown_argument(unknown[0]))
    overrides = {key: _parse_value(text) for key, text in vars(known).items() if text is not None}
    return CommandLine(Path(overrides.pop("config_path")), overrides)


def _unknown_argument(argument: str) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}; quote a value that holds spaces"
    close = difflib.get_close_matches(argument.partition("=")[0], [f"--{name}" for name in _flag_names()], n=1)
    return f"unknown flag {argument!r}; " + (f"did you mean {close[0]!r}?" if close else "--help lists them")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows the flags")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="evaluation/run_eval.py",
        description="Evaluate a served model on a question set, with search.",
        epilog="Each flag but the first overrides the key of the same name in the configuration file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config_path", required=True, metavar="YAML")
    for name in _flag_names():
        required = name in ("method_name", "split", "dataset_name")
        choices = f" ({', '.join(METHODS)})" if name == "method_name" else ""
        field = EvalSettings.model_fields.get(name) or RetrieverSettings.model_fields[name]
        text = f"{field.description or ''}{choices}{' [required]' if required else ''}"
        parser.add_argument(f"--{name}", metavar="VALUE", help=text.replace("%", "%%") or None)
    return parser


def _flag_names() -> list[str]:
    return sorted((set(EvalSettings.model_fields) | RETRIEVER_KEYS) - {"retriever"})


def _parse_value(text: str) -> Any:
    """A flag's text as the YAML value it would be in the file: `false`, `5`, `[em, f1]`, `{temperature: 1.0}`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    # Dates and the like stay the text they were written as.
    return value if isinstance(value, str | int | float | bool | list | dict) or value is None else text


def load_settings(command_line: CommandLine) -> EvalSettings:
    """The checked settings of one run; raises `UserError` naming the key, its value and what was expected."""
    source = str(command_line.config_path)
    values = {**read_yaml_mapping(command_line.config_path), **command_line.overrides}
    for key in values:
        if key not in _flag_names():
            raise UserError(f"{source}: unknown key {key!r}{suggestion(key, _flag_names())}")
    if isinstance(values.get("metrics"), str):
        values["metrics"] = [name.strip() for name in values["metrics"].split(",")]
    for key in ("dataset_name", "split", "save_note"):
        if isinstance(values.get(key), int | float):  # a name made of digits reads as a number
            values[key] = str(values[key])
    return validated(EvalSettings, _with_retriever(values), source)


def _with_retriever(values: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key not in RETRIEVER_KEYS}
    return {**rest, "retriever": {key: value for key, value in values.items() if key in RETRIEVER_KEYS}}
