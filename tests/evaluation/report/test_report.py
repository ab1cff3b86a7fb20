"""The report command over runs on disk: its input, its output and its refusals."""

import asyncio
import json
from pathlib import Path

import pytest

from evaluation.report.report import main
from flashrag.document import Passage
from flashrag.episode import Failure, Segment, Source, ToolCall, Trajectory, Usage
from flashrag.prompts import PromptRecord, write_record
from verl_search.rollout.trajectories import Retention, TrajectoryWriter

ROLLOUT = Trajectory(
    "t1",
    "Which river?",
    ("Marara",),
    answer="Marara",
    dialect="research",
    segments=(Segment(Source.MODEL, "<answer> Marara </answer>", (5,), (-0.4,)),),
    reward=1.0,
    split="train",
    step=1,
)
GONE = Failure("SearchError", "gone")


def item(number: int, *, right: bool = True, error: Failure | None = None) -> Trajectory:
    return Trajectory(
        f"q{number}",
        f"Who is number {number}?",
        ("Ada",),
        answer="Ada" if right else "Bob",
        end_reason="failed" if error else "eos",
        metrics={"em": float(right)},
        usage=Usage(searches=number % 3, completion_tokens=10 + number),
        segments=(Segment(Source.RESULT, "", call=0),),
        calls=(ToolCall("who", (Passage("7", "</script><b>Ada</b>", 0.5),)),),
        error=error,
    )


def write_evaluation(folder: Path, items: list[Trajectory], method: str = "naive", note: str | None = None) -> Path:
    folder.mkdir()
    em = sum(i.metrics["em"] or 0.0 for i in items) / len(items)
    summary = {
        "method": method,
        "dataset": "demo",
        "n": len(items),
        "n_failed": sum(i.failed for i in items),
        "metrics": {"em": {"mean": em, "low": em - 0.1, "high": em + 0.1, "n": len(items)}},
        "usage": {"searches": 1.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(f"save_note: {note or 'null'}\n")
    (folder / "items.jsonl").write_bytes(b"".join(i.to_json() + b"\n" for i in items))
    return folder


def test_runs_of_both_kinds_become_a_page_and_a_table(tmp_path, capsys):
    first = write_evaluation(tmp_path / "first", [item(n, right=n % 2 == 0) for n in range(10)])
    second = write_evaluation(tmp_path / "second", [item(n) for n in range(10)], "research", "trained")
    writer = TrajectoryWriter(tmp_path / "training" / "trajectories", Retention())
    asyncio.run(writer.write(ROLLOUT))
    (tmp_path / "training" / "hydra" / ".hydra").mkdir(parents=True)
    (tmp_path / "training" / "hydra" / ".hydra" / "config.yaml").write_text("search: {control: random}")
    write_record(tmp_path / "training", PromptRecord("mine.yaml", apply_chat=False, sha256="0123456789abcdef"))
    out = tmp_path / "out"
    assert main([str(first), str(second), str(tmp_path / "training"), "--out", str(out)]) == 0
    markdown = (out / "report.md").read_text()
    assert "| naive | 50.00 [40.00, 60.00] |" in markdown
    assert "| research (trained) | 100.00 [90.00, 110.00] |" in markdown
    assert "| first | second | 10 | +50.00" in markdown
    assert f"| {tmp_path.name}/training | random | 1 | 100.00 (1) |" in markdown
    assert "Runs: 3; trajectories: 21." in markdown
    trained = "was trained with the prompt mine.yaml (as plain text, sha256 0123456789ab)."
    assert f"{tmp_path.name}/training {trained}" in markdown
    assert markdown in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "<b>Ada</b>" not in page  # passages travel packed; nothing of theirs is markup


def test_runs_are_compared_by_exact_match_whatever_their_metrics(tmp_path, capsys):
    """`--metrics f1` leaves em out of the items."""
    runs = [write_evaluation(tmp_path / name, [item(n, right=n > 2 or name == "b") for n in range(6)]) for name in "ab"]
    for run in runs:
        lines = [json.loads(line) for line in (run / "items.jsonl").read_text().splitlines()]
        (run / "items.jsonl").write_text("".join(json.dumps({**line, "metrics": {}}) + "\n" for line in lines))
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    assert "| a | b | 6 | +50.00 [" in capsys.readouterr().out


def test_the_same_runs_give_the_same_page(tmp_path):
    run = write_evaluation(tmp_path / "run", [item(n) for n in range(5)])
    pages = []
    for name in ("a", "b"):
        assert main([str(run), "--out", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_retried_question_counts_with_its_last_line(tmp_path, capsys):
    run = write_evaluation(tmp_path / "run", [item(0, right=False, error=GONE), item(0)])
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert "Runs: 1; trajectories: 1." in capsys.readouterr().out


def test_failed_questions_are_told(tmp_path, capsys):
    run = write_evaluation(tmp_path / "run", [item(0), item(1, right=False, error=GONE)])
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert "1 questions failed and count as wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), "the run has not ended"),
        (lambda run: (run / "summary.json").write_text("{"), "is damaged"),
        (lambda run: (run / "summary.json").write_bytes(b"\xff"), "is damaged"),
        (lambda run: (run / "summary.json").write_text("[]"), "is not what a run writes there"),
        (
            lambda run: (run / "summary.json").write_text('{"method": "research"}'),
            "expected an object with method, dat",
        ),
        (lambda run: (run / "config.yaml").unlink(), "the run has not ended"),
        (lambda run: (run / "config.yaml").write_text("- a"), "config.yaml holds list"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml is not valid YAML"),
        (lambda run: (run / "items.jsonl").write_text("{\n{}\n"), "line 1 cannot be read"),
        (lambda run: (run / "items.jsonl").unlink(), "holds no run"),
    ],
)
def test_what_is_no_finished_run_is_refused(tmp_path, capsys, spoil, message):
    run = write_evaluation(tmp_path / "run", [item(0)])
    spoil(run)
    assert main([str(run), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_folder_that_is_no_run_is_named(tmp_path, capsys):
    run = write_evaluation(tmp_path / "run", [item(0)])
    (tmp_path / "file").write_text("")
    folders = [str(run), str(tmp_path / "nowhere"), str(tmp_path / "file")]
    assert main([*folders, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    for folder in folders[1:]:
        assert f"{folder} holds no run; expected the folder of an evaluation" in error
    assert not (tmp_path / "out").exists()
