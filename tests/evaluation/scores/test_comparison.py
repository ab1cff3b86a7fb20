"""Two runs on disk, compared by their items."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.run_eval import main
from evaluation.scores.comparison import compare_runs
from flashrag.episode import Trajectory


def write_run(folder: Path, scores: dict[str, dict[str, Any]]) -> Path:
    folder.mkdir()
    lines = [Trajectory(key, "Who?", ("Wu",), metrics=metrics).to_json() for key, metrics in scores.items()]
    (folder / "items.jsonl").write_bytes(b"\n".join([*lines, b""]))
    (folder / "summary.json").write_text("{}")
    return folder


def test_pairs_are_made_by_question_whatever_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = write_run(tmp_path / "a", {str(n): {"em": 0.0, "yes_no_acc": None, "f1": 0.5} for n in range(5)})
    b = write_run(tmp_path / "b", {str(n): {"em": 1.0, "yes_no_acc": None} for n in reversed(range(5))})
    comparisons = compare_runs(a, b)
    assert set(comparisons) == {"em"}  # f1 stands in one run alone, yes_no_acc applies to no question
    assert comparisons["em"].p_value == pytest.approx(2 / 2**5)
    assert main(["compare", str(a), str(b)]) == 0
    assert "0.0000 -> 1.0000  +1.0000 [+1.0000, +1.0000]  p 0.0625  n 5" in capsys.readouterr().out
    assert main(["compare", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["em"]["difference"]["mean"] == 1.0


def test_runs_that_cannot_be_paired_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = write_run(tmp_path / "a", {"1": {"em": 0.0}})
    b = write_run(tmp_path / "b", {"1": {"em": 0.0}, "2": {"em": 1.0}})
    assert main(["compare", str(a), str(b)]) == 2
    assert "1 questions" in capsys.readouterr().err
    assert main(["compare", str(a), str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    (b / "items.jsonl").unlink()
    assert main(["compare", str(a), str(b)]) == 2
    assert f"{b} holds no finished run (no items.jsonl)" in capsys.readouterr().err
    c = write_run(tmp_path / "c", {"1": {"f1": 0.0}})
    assert main(["compare", str(a), str(c)]) == 2
    assert f"{a} and {c} have no metric in common" in capsys.readouterr().err
    (c / "summary.json").write_text('{"n_missing": 2}')
    assert main(["compare", str(a), str(c)]) == 2
    assert f"{c} was interrupted and lacks 2 answers; repeat its command to complete it" in capsys.readouterr().err
    assert main(["compare", str(a)]) == 2
    assert "RUN_B" in capsys.readouterr().err
