"""The plan that `--check` prints: what a command would do, from the same facts as its rules.

A plan is sections of named entries; each entry is a function of the facts. Where a fact cannot be gathered, its entries
say "unknown", and the findings below the plan give the reason.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from flashrag.errors import EXIT_USER_ERROR, UserError, without_passwords
from flashrag.preflight.findings import Finding, Severity

if TYPE_CHECKING:  # rich is no part of the light core, which imports this module
    from rich.text import Text

F = TypeVar("F")
Entry = Callable[[F], "str | Text"]
Plan = Mapping[str, Mapping[str, Entry[F]]]
COLORS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
UNKNOWN = "unknown"
CHECK_HELP = "print what would be done and everything that is wrong with it, and start nothing"


def keep_torch_out_of_a_check(arguments: Sequence[str]) -> None:
    """Called by a program before its `main`: with `--check` no model is loaded, and torch is not imported.

    transformers imports torch where it is installed, which takes most of the time that a tokenizer needs to load.
    """
    if "--check" in arguments and "torch" not in sys.modules:
        sys.modules["torch"] = None  # pyrefly: ignore[unsupported-operation]
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not there


@contextmanager
def torch_allowed() -> Iterator[None]:
    """Let code of the user's own import torch in a check, too."""
    kept_out = "torch" in sys.modules and sys.modules["torch"] is None
    if kept_out:
        del sys.modules["torch"]
    try:
        yield
    finally:
        if kept_out and "torch" not in sys.modules:
            sys.modules["torch"] = None  # pyrefly: ignore[unsupported-operation]


def checked_command(program: str, arguments: Sequence[str]) -> str:
    """The command that `--check` looks at, to be copied into a shell.

    >>> checked_command("python a.py", ["--check", "--out", "my runs"])
    "python a.py --out 'my runs'"
    """
    return f"{program} {shlex.join(argument for argument in arguments if argument != '--check')}"


def without_check(command: str) -> str:
    """The same of a command that is one text already, quoted for the shell.

    >>> without_check("bash training/run.sh --check --save_path out")
    'bash training/run.sh --save_path out'
    """
    return re.sub(r" --check(?= |$)", "", command)


def show_check(plan: Plan[F], facts: F, findings: Sequence[Finding]) -> int:
    """Print the plan and the findings on stdout; returns the exit code: 2 if there is an error, else 0.

    A pipe or a file gets plain text, a terminal gets colours. Nothing is wrapped, so that commands can be copied. It
    shows no user or password of an address, because people paste it elsewhere.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False, markup=False)
    for title, entries in plan.items():
        console.print(title, style="bold")
        width = max(map(len, entries))
        for name, entry in entries.items():
            try:
                value = entry(facts)
            except (UserError, OSError):
                value = UNKNOWN
            shown = without_passwords(value) if isinstance(value, str) else value
            console.print(Text.assemble(f"  {name:{width}}  ", shown))
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    console.print("findings", style="bold")
    for finding in findings:
        console.print(Text(f"  {finding}", style=COLORS[finding.severity]))
    plural = "" if errors == 1 else "s"
    console.print(f"  {errors} error{plural}: this would {'not ' if errors else ''}start")
    return EXIT_USER_ERROR if errors else 0
