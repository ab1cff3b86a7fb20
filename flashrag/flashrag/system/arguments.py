"""The command lines of this project: one parser, so that all commands have the same help and error messages.

A command declares its flags once, in named groups, as the fields of a dataclass:

    @dataclass(frozen=True, kw_only=True)
    class ServeOptions:
        model_path: Path = flag("Hugging Face folder", group="model")
        context_length: int | None = flag("(default: the model's)", None, metavar="TOKENS", group="model")
        timeout_s: float = flag("for one request", 60.0, metavar="SECONDS", group="server")

    parser = CommandParser(prog="scripts/serve.py", description="Serve a model.")
    parser.add_fields(ServeOptions)
    options = parser.parse_into(ServeOptions, argv)

`parse_options` does these three steps for a command without an epilog. A command whose flags are known only at run time
declares them with argparse's `add_argument_group` and `add_argument`.

The parser does the rest:
- `--help` appends `(default: 60.0)`, unless the help says "default" itself. Where the default is None, the help should
  say what happens then.
- A placeholder follows from the type: N, NUMBER, PATH or TEXT. Give `metavar` the unit where there is one (SECONDS,
  TOKENS, BYTES, GB), or a narrower kind of text (URL, NAME, KEY).
- A parser with many flags prints only the required ones in its usage line.
- A wrong argument raises `UserError`, which suggests a similar flag if there is one. Abbreviations are refused: a
  new flag must not change the meaning of an old command.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from flashrag.errors import UserError, did_you_mean

Number = TypeVar("Number", int, float)
Options = TypeVar("Options")
METAVARS = {"int": "N", "float": "NUMBER", "Path": "PATH"}
FLAGS_IN_USAGE = 6  # nobody reads a usage line with more


class HelpFormatter(argparse.HelpFormatter):
    """Adds to every flag its default and a placeholder for the kind of its value; keeps the paragraphs of a text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        is_plain = action.nargs != 0 and not action.required and action.default not in (None, argparse.SUPPRESS)
        if not is_plain or "default" in text or not (action.option_strings or action.nargs in ("?", "*")):
            return text
        shown = " ".join(map(str, action.default)) if isinstance(action.default, list | tuple) else "%(default)s"
        return f"{text} (default: {shown})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return METAVARS.get(getattr(action.type, "__name__", ""), "TEXT")

    def _format_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Iterable[Any], prefix: str | None
    ) -> str:
        actions = list(actions)
        if usage is not None or len(actions) <= FLAGS_IN_USAGE:
            return super()._format_usage(usage, actions, groups, prefix)
        required = [action for action in actions if action.required or not action.option_strings]
        line = super()._format_usage(None, required, (), prefix)
        return line.rstrip("\n") + " [options]\n\n"


class CommandParser(argparse.ArgumentParser):
    """The parser of a command; the module's docstring lists its additions to argparse's."""

    def __init__(self, prog: str | None = None, description: str | None = None, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=HelpFormatter, allow_abbrev=False
        )
        self._given: list[str] = []

    def parse_into(self, options: type[Options], args: Sequence[str] | None = None) -> Options:
        """The arguments as a dataclass that `add_fields` was given; fields that are no flags keep their defaults."""
        values = vars(self.parse_args(args))
        return options(**{item.name: values[item.name] for item in _flag_fields(options)})

    def add_fields(self, options: type, **defaults: Any) -> None:
        """A flag for each field of the dataclass that `flag` made: required where the field has no default.

        `defaults` are the command's own where they differ from the dataclass's.
        """
        groups: dict[str | None, Any] = {None: self}
        kinds = get_type_hints(options)
        for item in _flag_fields(options):
            group, given = item.metadata["flag"]
            if group not in groups:
                groups[group] = self.add_argument_group(group)
            keywords = {**_keywords(kinds[item.name]), **given}
            if item.default is dataclasses.MISSING:
                keywords["required"] = True
            else:
                keywords["default"] = item.default
            groups[group].add_argument(f"--{item.name}", *keywords.pop("aliases", ()), **keywords)
        self.set_defaults(**defaults)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyrefly: ignore[bad-override]
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # pyrefly: ignore[bad-override]
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UserError(f"unrecognized arguments: {' '.join(unknown)}{self.nearest_flag(unknown[0])}")
        return known

    def nearest_flag(self, argument: str) -> str:
        """`; did you mean --flag?` if a flag of this parser is similar, else a pointer to --help."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        return did_you_mean(argument.partition("=")[0], flags) or "; --help shows the arguments"

    def error(self, message: str) -> NoReturn:
        flags = (word.partition("=")[0] for word in self._given if word.startswith("--"))
        unknown = next((flag for flag in flags if flag not in self._option_string_actions), None)
        if "required" in message and unknown:  # most likely one of these, misspelt
            raise UserError(f"{message}; {unknown!r} is no argument{self.nearest_flag(unknown)}")
        raise UserError(f"{message}; --help shows the arguments")


def parse_options(options: type[Options], prog: str, args: Sequence[str] | None = None) -> Options:
    """The arguments of a command that has the dataclass's flags and no others; its docstring describes the command."""
    parser = CommandParser(prog=prog, description=options.__doc__)
    parser.add_fields(options)
    return parser.parse_into(options, args)


def flag(help: str, default: Any = dataclasses.MISSING, *, group: str | None = None, **keywords: Any) -> Any:
    """A field of a dataclass of options that is a flag of the same name.

    `keywords` are those of `add_argument`, and `aliases`: other names that the flag had or has elsewhere.
    The field's type gives the flag's: `bool` is a switch, `Literal` and `Enum` are choices, `X | None` is `X`, and
    `Sequence[X]` is one `X` or more (a list, where one is given).
    """
    return dataclasses.field(default=default, metadata={"flag": (group, {"help": help, **keywords})})


def _flag_fields(options: Any) -> list[dataclasses.Field]:
    return [item for item in dataclasses.fields(options) if "flag" in item.metadata]


def _keywords(kind: Any) -> dict[str, Any]:
    """The keywords of `add_argument` for a value of this type."""
    if type(None) in get_args(kind):
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is Literal:
        return {"choices": list(get_args(kind))}
    if get_origin(kind) is Sequence:
        return {"nargs": "+", **_keywords(*get_args(kind))}
    if kind is bool:
        return {"action": "store_true"}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"type": kind, "choices": list(kind)}
    return {} if kind is str else {"type": kind}


def boolean(text: str) -> bool:
    """The `type` of an argument that is true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def in_range(kind: type[Number], low: Number, high: Number | None = None) -> Callable[[str], Number]:
    """The `type` of an argument that is a finite number from `low` to `high`, both included."""
    expected = f"{'an integer' if kind is int else 'a number'} from {low} {'on' if high is None else f'to {high}'}"

    def parse(text: str) -> Number:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if math.isfinite(value) and low <= value and (high is None or value <= high):
                return value
        raise argparse.ArgumentTypeError(f"{text} was given; expected {expected}")

    parse.__name__ = kind.__name__  # the help's placeholder
    return parse
