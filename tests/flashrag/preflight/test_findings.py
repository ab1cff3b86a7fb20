"""Facts are gathered once, all findings are told together, an error ends the command."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashrag.errors import UserError
from flashrag.preflight import (
    Finding,
    PreflightFailed,
    Severity,
    enforce,
    error,
    examine,
    fact,
    gathered,
    note,
    warning,
)


class Facts:
    def __init__(self) -> None:
        self.gathered: list[str] = []

    @fact
    def rows(self) -> int:
        self.gathered.append("rows")
        return 3

    @fact
    def model(self) -> str:
        self.gathered.append("model")
        raise UserError("model=m does not exist; give a folder")


def enough_rows(facts: Facts) -> Iterator[Finding]:
    if facts.rows < 8:
        yield error(f"{facts.rows} questions for a batch of 8; give more")


def model_fits(facts: Facts) -> Iterator[Finding]:
    yield warning("said before the fact is asked for")
    yield note(facts.model)


def model_is_small(facts: Facts) -> None:
    assert facts.model


RULES = {"model.fits": model_fits, "model.small": model_is_small, "data.rows": enough_rows}


def test_all_findings_come_at_once_errors_first_and_each_once():
    facts = Facts()
    assert examine(RULES, facts) == [
        Finding(Severity.ERROR, "model=m does not exist; give a folder", "model.fits"),
        Finding(Severity.ERROR, "3 questions for a batch of 8; give more", "data.rows"),
        Finding(Severity.WARNING, "said before the fact is asked for", "model.fits"),
    ]
    assert facts.gathered == ["model", "rows"], "each fact is gathered once, also one that fails"


def test_a_file_that_cannot_be_read_is_a_finding_too():
    class Gone:
        @fact
        def size(self) -> int:
            return Path("/no/such").stat().st_size

    (finding,) = examine({"file.size": gathered("size"), "file.again": gathered("size")}, Gone())
    assert (finding.severity, finding.rule) == (Severity.ERROR, "file.size")
    assert "/no/such: No such file or directory; give a path that this user and this system can use" in finding.message
    assert isinstance(Gone.size, fact)


def test_errors_are_raised_together_with_their_rules(capsys, tmp_path):
    with pytest.raises(PreflightFailed) as failed:
        enforce(examine(RULES, Facts()), tmp_path / "run")
    assert str(failed.value) == (
        "2 things keep this from starting:\n"
        "  1. model=m does not exist; give a folder [model.fits]\n"
        "  2. 3 questions for a batch of 8; give more [data.rows]"
    )
    assert failed.value.exit_code == 2
    assert capsys.readouterr().err == "warning: said before the fact is asked for [model.fits]\n"
    assert not (tmp_path / "run").exists()


def test_one_error_reads_like_any_other():
    with pytest.raises(PreflightFailed, match=r"^few rows \[data\.rows\]$"):
        enforce([Finding(Severity.ERROR, "few rows", "data.rows")])


def test_an_examination_within_a_rule_keeps_the_inner_rules():
    def inner(_: None) -> None:
        raise PreflightFailed([Finding(Severity.ERROR, "inner", "inner.rule")])

    assert examine({"outer": inner}, None) == [Finding(Severity.ERROR, "inner", "inner.rule")]


def test_warnings_are_kept_in_the_folder_of_the_run(tmp_path, capsys):
    enforce(examine({"data.order": lambda _: [warning("half ½")]}, None), tmp_path / "run")
    kept = (tmp_path / "run" / "preflight.jsonl").read_text(encoding="utf-8")
    assert json.loads(kept) == {"severity": "warning", "message": "half ½", "rule": "data.order"}
    assert "warning: half ½ [data.order]" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        enforce([], tmp_path / "file" / "run")


def test_a_path_that_the_system_refuses_is_an_error_in_words():
    def rule(_: None) -> None:
        Path("x" * 5000).exists()

    ((severity, message, _),) = [(f.severity, f.message, f.rule) for f in examine({"out": rule}, None)]
    assert severity is Severity.ERROR
    assert message == f"{'x' * 119}…: File name too long; give a path that this user and this system can use"
