"""The plan of `--check`: readable without colours, complete where facts are missing."""

from collections.abc import Iterator

import pytest
from rich.text import Text

from flashrag.errors import UserError
from flashrag.preflight import Finding, Plan, Severity, error, examine, show_check


def gone(_: int) -> str:
    raise UserError("no such model")


PLAN = {"steps": {"steps": str, "model": gone}, "text": {"mask": lambda _: Text("[/a] b", style="green")}}


def test_a_pipe_gets_plain_text(capsys):
    findings = [Finding(Severity.ERROR, "no such model", "model.folder"), Finding(Severity.NOTE, "[x]", "n")]
    assert show_check(PLAN, 7, findings) == 2
    assert capsys.readouterr().out == (
        "steps\n  steps  7\n  model  unknown\ntext\n  mask  [/a] b\n"
        "findings\n  error: no such model [model.folder]\n  note: [x] [n]\n  1 error: this would not start\n"
    )


def test_without_an_error_the_command_would_start(capsys):
    assert show_check({}, 7, [Finding(Severity.WARNING, "w", "r")]) == 0
    assert capsys.readouterr().out == "findings\n  warning: w [r]\n  0 errors: this would start\n"


def test_no_user_or_password_of_an_address_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(_: str) -> Iterator[Finding]:
        yield error("http://me:secret@host:80 does not answer")

    plan: Plan[str] = {"run": {"command": str, "server": lambda url: f"{url}: bm25"}}
    url = "https://me:secret@host/api"
    assert show_check(plan, url, examine({"server": refused}, url)) == 2
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert "https://host/api: bm25\n" in shown
    assert "http://host:80 does not answer" in shown
