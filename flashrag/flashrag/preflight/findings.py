"""Facts, rules and findings: what a command looks at before it starts anything.

A command declares what it must know as facts, each gathered once and on first use, and its rules as functions of them:

    class ServingFacts:
        @fact
        def settings(self) -> ServerSettings:
            return read_settings(self.path)

    def port_is_free(facts: ServingFacts) -> Iterator[Finding]: ...

    findings = examine({"serving.port": port_is_free}, ServingFacts(path))

Rules do no I/O of their own. A rule yields findings, or raises `UserError`. Where a fact cannot be gathered, every rule
that needs it ends there, and the reason is reported once.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from flashrag.errors import UserError, without_passwords
from flashrag.system.files import write_text

F = TypeVar("F")
Value = TypeVar("Value")
FINDINGS_FILE = "preflight.jsonl"
MOST_SHOWN = 120  # characters of a path


class Severity(StrEnum):
    """An error keeps the command from starting, a warning is kept in the run's folder, a note only informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """The message says what was given, what was expected and what to change; `rule` is the id of the rule."""

    severity: Severity
    message: str
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} [{self.rule}]"


Rule = Callable[[F], Iterable[Finding] | None]


def error(message: str) -> Finding:
    return Finding(Severity.ERROR, message)


def warning(message: str) -> Finding:
    return Finding(Severity.WARNING, message)


def note(message: str) -> Finding:
    return Finding(Severity.NOTE, message)


class fact(Generic[Value]):
    """A property that is computed on first use. A `UserError` is kept too, and raised again on each use.

    A file that cannot be read, or is gone by now, counts as one.
    """

    def __init__(self, gather: Callable[[Any], Value]) -> None:
        self._gather = gather
        functools.update_wrapper(self, gather)  # pyrefly: ignore[bad-argument-type]

    def __get__(self, facts: Any, owner: type | None = None) -> Value:
        if facts is None:  # asked of the class
            return self  # pyrefly: ignore[bad-return]
        gathered, name = facts.__dict__.setdefault("_gathered", {}), self._gather.__name__
        if name not in gathered:
            try:
                gathered[name] = self._gather(facts)
            except UserError as reason:
                gathered[name] = reason
            except OSError as reason:
                gathered[name] = UserError(_about_a_path(reason))
        if isinstance(gathered[name], UserError):
            raise gathered[name]
        return gathered[name]


def _about_a_path(reason: OSError) -> str:
    """A path that is too long, a loop of links, a file of another user, a file that is gone by now."""
    path = str(reason.filename or "a file")
    shown = path if len(path) <= MOST_SHOWN else f"{path[: MOST_SHOWN - 1]}…"
    return f"{shown}: {reason.strerror or reason}; give a path that this user and this system can use"


def gathered(name: str) -> Rule[Any]:
    """The rule that the fact of this name can be gathered."""

    def rule(facts: Any) -> None:
        getattr(facts, name)

    return rule


class PreflightFailed(UserError):
    """Errors were found: the message holds all of them."""

    def __init__(self, errors: Sequence[Finding]) -> None:
        self.errors = tuple(errors)
        first, *others = [f"{finding.message} [{finding.rule}]" for finding in errors]
        count = f"{len(errors)} things keep this from starting:\n  1. " if others else ""
        rest = "".join(f"\n  {number}. {message}" for number, message in enumerate(others, start=2))
        super().__init__(f"{count}{first}{rest}")


def examine(rules: Mapping[str, Rule[F]], facts: F) -> list[Finding]:
    """The findings of all rules, errors first; the same message is kept once, under the first rule that gave it.

    No message shows the user or password of an address.
    """
    found: dict[str, Finding] = {}

    def keep(rule: str, finding: Finding) -> None:
        message = without_passwords(finding.message)
        found.setdefault(message, Finding(finding.severity, message, finding.rule or rule))

    for name, rule in rules.items():
        try:
            for finding in rule(facts) or ():
                keep(name, finding)
        except PreflightFailed as failed:
            for finding in failed.errors:
                keep(name, finding)
        except UserError as reason:
            keep(name, error(str(reason)))
        except OSError as reason:
            keep(name, error(_about_a_path(reason)))
    return sorted(found.values(), key=lambda finding: list(Severity).index(finding.severity))


def enforce(findings: Sequence[Finding], folder: Path | None = None) -> None:
    """Print warnings and notes on stderr, and raise `PreflightFailed` if there is an error.

    Without an error, `folder`, if given, keeps the findings as JSON lines in `FINDINGS_FILE`.
    """
    for finding in findings:
        if finding.severity is not Severity.ERROR:
            print(finding, file=sys.stderr)
    if errors := [finding for finding in findings if finding.severity is Severity.ERROR]:
        raise PreflightFailed(errors)
    if folder is not None:
        keep_findings(findings, folder)


def keep_findings(findings: Sequence[Finding], folder: Path) -> None:
    """Write the findings into the folder of a run; raises `UserError` where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FINDINGS_FILE, "".join(json.dumps(asdict(finding)) + "\n" for finding in findings))
    except OSError as reason:
        raise UserError(f"{folder} cannot be written ({reason}); give another folder") from reason
