"""Every command of the repository: its parser takes the required flags alone, and its help explains every flag."""

import argparse
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from flashrag.system.arguments import CommandParser

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {"flashrag": "flashrag/flashrag", "verl_search": "verl/verl_search"}
PACKAGES |= {name: name for name in ("rag_serving", "evaluation", "training", "scripts")}
SUBCOMMANDS = {
    "training.launch": ([], ["--recipe", "smollm2-nq"]),
    "evaluation.run_eval": ([], ["report"], ["compare"], ["curve"]),
    "scripts.download_data": ([], ["prompts"]),
}
# Programs that other programs of ours start, and the trainers, whose keys are Hydra's.
NO_PARSER = {"flashrag.tools.confine", "scripts.environment", "verl_search.main_ppo", "verl_search.warm_start"}
SLOW_TO_IMPORT = {"scripts.bench.rollout"}  # verl, vLLM and Ray
MOST_FLAGS_WITHOUT_GROUPS = 8


def programs() -> list[str]:
    """The modules that can be run, by their dotted names."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                found.append(".".join((package, *path.relative_to(REPOSITORY / folder).with_suffix("").parts)))
    return found


COMMANDS = [
    pytest.param(
        name, arguments, id=" ".join((name, *arguments)), marks=[pytest.mark.slow] if name in SLOW_TO_IMPORT else []
    )
    for name in programs()
    if name not in NO_PARSER
    for arguments in SUBCOMMANDS.get(name, ([],))
]


class Captured(BaseException):
    """Carries a command's parser out of its `main`."""

    def __init__(self, parser: CommandParser) -> None:
        super().__init__()
        self.parser = parser


def capture(parser: CommandParser, *_: object, **__: object) -> NoReturn:
    raise Captured(parser)


def parser_of(name: str, arguments: Sequence[str]) -> CommandParser:
    """The parser that the command's `main` makes, at the moment when it would parse."""
    main = importlib.import_module(name).main
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Captured) as captured:
        patch.setattr(CommandParser, "parse_known_args", capture)
        main(list(arguments))
    return captured.value.parser


def flags_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def sample(action: argparse.Action) -> list[str]:
    """What a user might write for a required flag."""
    value = str(next(iter(action.choices))) if action.choices else "1"
    return [*action.option_strings[:1], value]


def is_plain(value: Any, action: argparse.Action) -> bool:
    """Whether a default is what the flag's own type makes of the same value written out."""
    if value is None or (action.nargs == 0 and isinstance(value, bool)):
        return True
    if isinstance(value, list | tuple):
        return all(is_plain(item, action) for item in value)
    if not callable(action.type):
        return isinstance(value, str)
    return action.type(str(value)) == value


def test_the_list_of_commands_is_the_repository_s() -> None:
    names = set(programs())
    assert names >= NO_PARSER
    assert {"flashrag.system.model_server", "rag_serving.serving", "training.launch", "evaluation.run_eval"} <= names
    assert len(COMMANDS) == len(names) - len(NO_PARSER) + sum(len(each) - 1 for each in SUBCOMMANDS.values())


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_every_default_is_a_plain_value(name: str, arguments: list[str]) -> None:
    parser = parser_of(name, arguments)
    flags = flags_of(parser)
    given = [word for action in flags if action.required for word in sample(action)]
    for group in parser._mutually_exclusive_groups:
        if group.required:
            given += sample(group._group_actions[0])
    values = vars(parser.parse_args(given))
    odd = {f.dest: values[f.dest] for f in flags if not is_plain(values[f.dest], f)}
    assert odd == {}


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_help_explains_every_flag(name: str, arguments: list[str]) -> None:
    parser = parser_of(name, arguments)
    text = parser.format_help()
    assert "VALUE" not in text
    alternatives = {id(a) for g in parser._mutually_exclusive_groups if g.required for a in g._group_actions}
    for action in flags_of(parser):
        shown = parser._get_formatter()._expand_help(action) if action.help else ""
        assert shown, f"{action.dest}: no help"
        is_switch = action.nargs == 0
        if action.option_strings and not (action.required or id(action) in alternatives or is_switch):
            assert "default" in shown, f"{action.dest}: {shown!r} does not say what holds without it"
    loose = [action for action in parser._optionals._group_actions if not isinstance(action, argparse._HelpAction)]
    assert len(flags_of(parser)) <= MOST_FLAGS_WITHOUT_GROUPS or not loose, (
        f"flags in no group: {[a.dest for a in loose]}"
    )
    assert re.search(r"\w", parser.description or ""), "the command does not say what it does"
