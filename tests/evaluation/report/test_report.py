"""The report command over runs on disk: what it reads, writes and refuses."""

import gzip
import json
from pathlib import Path

import pytest

from evaluation.report.report import main

ROLLOUT = {
    "question_id": "t1",
    "step": 1,
    "question": "Which river?",
    "gold_answers": ["Marara"],
    "answer": "Marara",
    "reward": 1.0,
    "reason": "em 1.00",
    "ended_by": "eos",
    "searches": [],
    "segments": [{"source": "model", "text": "<answer> Marara </answer>", "token_ids": [5], "log_probs": [-0.4]}],
}


def item(number: int, *, right: bool = True, error: dict[str, str] | None = None) -> dict[str, object]:
    contents = "</script><b>Ada</b>"
    return {
        "id": f"q{number}",
        "question": f"Who is number {number}?",
        "golden_answers": ["Ada"],
        "prediction": "Ada" if right else "Bob",
        "end_reason": "failed" if error else "eos",
        "metrics": {"em": float(right)},
        "usage": {"searches": number % 3, "completion_tokens": 10 + number},
        "steps": [{"kind": "result", "text": "", "passages": [
            {"id": "7", "contents": contents, "score": 0.5, "has_answer": True}]}],
        "error": error,
        "metadata": {},
    }  # fmt: skip


def write_evaluation(
    folder: Path, items: list[dict[str, object]], method: str = "naive", note: str | None = None
) -> Path:
    folder.mkdir()
    em = sum(i["metrics"]["em"] for i in items) / len(items)  # type: ignore[index]
    summary = {
        "method": method,
        "dataset": "demo",
        "n": len(items),
        "n_failed": sum(i["error"] is not None for i in items),
        "metrics": {"em": {"mean": em, "low": em - 0.1, "high": em + 0.1, "n": len(items)}},
        "usage": {"searches": 1.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(f"save_note: {note or 'null'}\n")
    (folder / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    return folder


def test_runs_of_both_kinds_become_a_page_and_a_table(tmp_path, capsys):
    first = write_evaluation(tmp_path / "first", [item(n, right=n % 2 == 0) for n in range(10)])
    second = write_evaluation(tmp_path / "second", [item(n) for n in range(10)], "research", "trained")
    (tmp_path / "training" / "trajectories" / "train").mkdir(parents=True)
    with gzip.open(tmp_path / "training" / "trajectories" / "train" / "step_000001.9.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROLLOUT) + "\n")
    out = tmp_path / "out"
    assert main([str(first), str(second), str(tmp_path / "training"), "--out", str(out)]) == 0
    markdown = (out / "report.md").read_text()
    assert "| naive | 50.00 [40.00, 60.00] |" in markdown
    assert "| research (trained) | 100.00 [90.00, 110.00] |" in markdown
    assert "| first | second | 10 | +50.00" in markdown
    assert "Runs: 3; trajectories: 21." in markdown
    assert markdown in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "<b>Ada</b>" not in page  # passages travel packed; nothing of theirs is markup


def test_the_same_runs_give_the_same_page(tmp_path):
    run = write_evaluation(tmp_path / "run", [item(n) for n in range(5)])
    pages = []
    for name in ("a", "b"):
        assert main([str(run), "--out", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_retried_question_counts_with_its_last_line(tmp_path, capsys):
    gone = {"type": "SearchError", "message": "gone"}
    run = write_evaluation(tmp_path / "run", [item(0, right=False, error=gone), item(0)])
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert "Runs: 1; trajectories: 1." in capsys.readouterr().out


def test_failed_questions_are_told(tmp_path, capsys):
    gone = {"type": "SearchError", "message": "gone"}
    run = write_evaluation(tmp_path / "run", [item(0), item(1, right=False, error=gone)])
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert "1 questions failed; they count as wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), "the run has not ended"),
        (lambda run: (run / "summary.json").write_text("{"), "is damaged"),
        (lambda run: (run / "items.jsonl").write_text("{\n{}\n"), "line 1 is no JSON"),
        (lambda run: (run / "items.jsonl").unlink(), "holds no run"),
    ],
)
def test_what_is_no_finished_run_is_refused(tmp_path, capsys, spoil, message):
    run = write_evaluation(tmp_path / "run", [item(0)])
    spoil(run)
    assert main([str(run), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
