"""run_eval.py's flags: one for each key of the configuration, `--generation_params.temperature 0` for a nested one.

A flag's text is parsed as YAML, like a value in the file, and overrides the file.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evaluation.settings import RETRIEVER_KEYS, EvalSettings
from flashrag.config import inner_model, read_yaml_mapping, suggestion, validated
from flashrag.dataset import DatasetSettings
from flashrag.errors import UserError
from flashrag.generator import GeneratorSettings
from flashrag.pipeline import PipelineSettings
from flashrag.preflight import CHECK_HELP
from flashrag.retriever import RetrieverSettings
from flashrag.system.arguments import CommandParser
from flashrag.system.engine import PRECISIONS, Engine

# The headings of `--help`. A key stands under the first whose settings have it.
_HEADINGS: dict[str, type[BaseModel]] = {
    "data set": DatasetSettings,
    "generator": GeneratorSettings,
    "method": PipelineSettings,
    "evaluation": EvalSettings,
    "local retriever (use_remote_retriever: false)": RetrieverSettings,
}
_ALIASES = {"remote_retriever_url": ("--search_url",)}  # training's name for it
_NAMES = ("dataset_name", "split", "save_note", "method_name")  # text, even if they look like numbers


SERVED = ("engine", "dtype")  # flags of a model that is served meanwhile


class CommandLine(NamedTuple):
    """The flags: the configuration file, its overridden values (by dotted key), and the flags that are not its keys.

    `resume`: ask failed questions again. `auto_serve`: the checkpoint to export and serve, with `engine`, in `dtype`.
    `check`: only look. `arguments` are all of them as given.
    """

    config_path: Path
    overrides: dict[str, Any]
    resume: bool = False
    auto_serve: Path | None = None
    check: bool = False
    engine: Engine | None = None
    dtype: str | None = None
    arguments: tuple[str, ...] = ()


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Read the flags; raises `UserError` for an unknown one."""
    given, overrides = parse_flags(_parser(), argv, ("config_path", "resume", "auto_serve", "check", *SERVED))
    resume = _parse_value(given["resume"] or "false")
    if not isinstance(resume, bool):
        raise UserError(f"--resume {resume} was given; expected --resume alone, or true or false")
    return CommandLine(
        given["config_path"],
        overrides,
        resume,
        given["auto_serve"],
        given["check"],
        **how_served(given),
        arguments=tuple(argv),
    )


def add_served(add_argument: Callable[..., Any]) -> None:
    """The flags of a model that is served meanwhile."""
    add_argument(
        "--engine", type=Engine, choices=list(Engine),
        help="the engine that serves the checkpoint of --auto_serve (default: as scripts/serve_model.sh chooses)",
    )  # fmt: skip
    add_argument(
        "--dtype", choices=PRECISIONS,
        help="the precision in which it is served (default: as scripts/serve_model.sh chooses)",
    )  # fmt: skip


def how_served(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags in `SERVED`, None for the default; raises `UserError` where no model is served meanwhile."""
    for name in SERVED:
        if given[name] is not None and not (given["auto_serve"] or given.get("demo")):
            raise UserError(
                f"--{name} {given[name]} is for a model that is served meanwhile; add --auto_serve CHECKPOINT"
            )
    return {name: given[name] for name in SERVED}


def parse_flags(
    parser: CommandParser, argv: Sequence[str], own: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a command's own flags, and the keys of the configuration that were given.

    Raises `UserError` for an unknown flag.
    """
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown_argument(unknown[0], parser))
    values = vars(known)
    overrides = {k: _parse_value(text) for k, text in values.items() if k not in own and text is not None}
    return {name: values[name] for name in own}, overrides


def _unknown_argument(argument: str, parser: CommandParser) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}; quote a value that holds spaces"
    return f"unknown flag {argument!r}{parser.nearest_flag(argument)}"


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="evaluation/run_eval.py",
        description="Evaluate a served model on a question set, with search. To continue a run, repeat its command.",
        epilog="Other commands: run_eval.py report RUN…; run_eval.py compare RUN_A RUN_B; run_eval.py curve, with the "
        "flags above, for every checkpoint in the folder that --auto_serve names. Each takes --help.",
    )
    run = parser.add_argument_group("run").add_argument
    run(
        "--config_path", type=Path, required=True, metavar="YAML",
        help="the configuration file; other flags override its keys",
    )  # fmt: skip
    run(
        "--resume", nargs="?", const="true", metavar="BOOL",
        help="also ask the failed questions again (default: false)",
    )  # fmt: skip
    run(
        "--auto_serve", type=Path, metavar="CHECKPOINT",
        help="export and serve this training checkpoint for the run (default: use the server of the configuration)",
    )  # fmt: skip
    add_served(run)
    run("--check", action="store_true", help=CHECK_HELP)
    add_keys(parser)
    return parser


def add_keys(parser: CommandParser, without: Collection[str] = ()) -> None:
    """A flag for each key of the configuration, but for the top-level keys in `without` and the keys in them."""
    fields = {name: field for name, field in sorted(_fields().items()) if name.partition(".")[0] not in without}
    for heading, settings in _HEADINGS.items():
        names = [name for name in fields if name.partition(".")[0] in settings.model_fields]
        group = parser.add_argument_group(f"keys of the configuration: {heading}") if names else parser
        for name in names:
            field = fields.pop(name)
            text = f"{field.description} (default: {_shown_default(field)})".replace("%", "%%")
            group.add_argument(f"--{name}", *_ALIASES.get(name, ()), metavar=_placeholder(name, field), help=text)


def _shown_default(field: FieldInfo) -> str:
    """The default of a key, written as in the file."""
    value = field.default
    if field.is_required():
        return "none, it must be set"
    if isinstance(value, BaseModel):
        return "those of its keys"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _placeholder(name: str, field: FieldInfo) -> str:
    """The unit of a key's value, or else its kind."""
    units = {"_s": "SECONDS", "_url": "URL", ".url": "URL", "_path": "PATH", "_dir": "PATH"}
    units |= {"_tokens": "TOKENS", "_len": "TOKENS", "_length": "TOKENS", "_per_million": "USD"}
    unit = next((unit for ending, unit in units.items() if name.endswith(ending)), None)
    kinds = {bool: "BOOL", int: "N", float: "NUMBER", str: "TEXT"}
    kind = next((kinds[kind] for kind in (field.annotation, *get_args(field.annotation)) if kind in kinds), None)
    return unit or kind or ("MAPPING" if inner_model(field.annotation) else "NAME")


def _fields() -> dict[str, FieldInfo]:
    """Every key of the configuration; dots separate the parts of a nested key."""
    top = {**RetrieverSettings.model_fields, **EvalSettings.model_fields}
    del top["retriever"]  # its keys stand beside the others
    return dict(_with_nested(top))


def _with_nested(fields: Mapping[str, FieldInfo], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in fields.items():
        yield f"{prefix}{name}", field
        if model := inner_model(field.annotation):
            yield from _with_nested(model.model_fields, f"{prefix}{name}.")


def _parse_value(text: str) -> Any:
    """A flag's text parsed as YAML: `false`, `5`, `[em, f1]`, `{temperature: 1.0}`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    # Values of other types, e.g. dates, stay text.
    return value if isinstance(value, str | int | float | bool | list | dict) or value is None else text


def load_settings(command_line: CommandLine) -> EvalSettings:
    """The checked settings of one run; raises a `UserError` that names the key, its value and the expected one."""
    source = str(command_line.config_path)
    values = read_yaml_mapping(command_line.config_path)
    # Set a whole mapping before its single keys, in whatever order the flags were given.
    for key, value in sorted(command_line.overrides.items(), key=lambda item: item[0].count(".")):
        _override(values, key.split("."), value)
    known = _fields()
    for key in values:
        if key not in known:
            raise UserError(f"{source}: unknown key {key!r}{suggestion(key, known)}")
    if isinstance(values.get("metrics"), str):
        values["metrics"] = [name.strip() for name in values["metrics"].split(",")]
    for key in _NAMES:
        if isinstance(values.get(key), int | float):
            values[key] = str(values[key])
    return validated(EvalSettings, _with_retriever(values), source)


def _override(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.get(part)
        values[part] = dict(inner) if isinstance(inner, dict) else {}
        values = values[part]
    values[path[-1]] = value


def _with_retriever(values: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key not in RETRIEVER_KEYS}
    return {**rest, "retriever": {key: value for key, value in values.items() if key in RETRIEVER_KEYS}}
