"""The figures of a recipe's folder, from evaluations and metrics of two runs."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from flashrag.document import Passage
from flashrag.episode import ToolCall, Trajectory
from scripts.bench.real_model import main


def write_evaluation(
    folder: Path, right: int, method: str = "research", apply_chat: bool = True, missing: int = 0
) -> None:
    """Ten questions, of which a search found the answer of the first four, and so many were answered rightly; one was
    answered with nothing.
    """
    folder.mkdir(parents=True)
    lines = []
    for number in range(10):
        call = ToolCall("who", (Passage("p", "Wu was here." if number < 4 else "Nobody.", 1.0),))
        answer, metrics = "Wu" if number < right else "Li" * (number < 9), {"em": float(number < right)}
        trajectory = Trajectory(str(number), "Who?", ("Wu",), answer, calls=(call,), metrics=metrics)
        lines.append(trajectory.to_json() + b"\n")
    (folder / "items.jsonl").write_bytes(b"".join(lines))
    share: dict[str, Any] = {"mean": right / 10, "low": 0.0, "high": 1.0}
    usage = {"searches": 1.0, "completion_tokens": 80.0, "generator_calls": 2.0}
    summary = {"n": 10, "metrics": dict.fromkeys(("em", "f1", "acc"), share), "usage": usage, "format_rate": 0.9}
    summary |= {
        "method": method,
        "n_failed": 0,
        "n_missing": missing,
        "prompt": {"apply_chat": apply_chat} if method != "random" else None,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def write_steps(folder: Path, rewards: list[float]) -> None:
    folder.mkdir(parents=True)
    others = ("rollout/em", "rollout/format_rate", "rollout/searches", "rollout/response_tokens_sampled")
    entries = [
        {"step": step, "data": {"critic/score/mean": reward, **dict.fromkeys(others, 0.5)}}
        for step, reward in enumerate(rewards, start=1)
    ]
    entries.append({"step": len(rewards), "data": {"val/em": 0.5}})  # a validation has a line of its own
    (folder / "1.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    again = {**entries[0], "data": {**entries[0]["data"], "critic/score/mean": 0.2}}  # after a stop
    (folder / "2.jsonl").write_text(json.dumps(again) + "\n")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluations_stand_beside_the_warm_start_s_and_curves_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "recipe", tmp_path / "out"
    write_evaluation(folder / "before" / "nq" / "test_research", right=1)
    write_evaluation(folder / "seed0" / "nq" / "test_research", right=3)
    write_evaluation(folder / "seed0" / "hotpotqa" / "dev_research", right=5)
    write_evaluation(folder / "seed1" / "nq" / "test_research", right=4)
    write_evaluation(folder / "random" / "nq" / "test_research", right=10)
    write_steps(folder / "seed0" / "training" / "metrics", [0.1, 0.4])
    (folder / "seed1" / "training" / "metrics").mkdir(parents=True)
    (folder / "seed1" / "training" / "metrics" / "1.jsonl").touch()  # it has begun, and done no step
    assert main(["--folder", str(folder), "--out", str(out)]) == 0
    found = {(row["run"], row["questions"]): row for row in rows(out / "evaluations.csv")}
    before, after, hotpotqa = found["before", "nq"], found["seed0", "nq"], found["seed0", "hotpotqa"]
    assert (before["run"], before["questions"], before["em"], before["gain"]) == ("before", "nq", "0.1", "")
    assert (after["run"], after["em"], after["gain"], after["p"]) == ("seed0", "0.3", "0.2", "0.5")
    # One of the four whose answer was found is right before, three of them after.
    assert (before["em_if_found"], after["em_if_found"], after["found"]) == ("0.25", "0.75", "0.4")
    assert (hotpotqa["questions"], hotpotqa["gain"]) == ("hotpotqa", ""), "the warm start has not been asked these"
    assert [(row["run"], row["step"], row["reward"]) for row in rows(out / "steps.csv")] == [
        ("seed0", "1", "0.2"),
        ("seed0", "2", "0.4"),
    ]
    assert (out / "curves.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "| seed0 | nq | 10 | 30.0 | 0.0 | 100.0 | +20.0 | 0.5000 |" in printed
    assert printed.endswith("nq: EM +25.0 points in the mean of the seeds (2)\n"), "a control is no seed"


def test_methods_have_a_table_in_their_order_with_the_plain_prompt_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, methods, out = tmp_path / "recipe", tmp_path / "methods", tmp_path / "out"
    write_evaluation(folder / "before" / "nq" / "test_research", right=1)
    write_evaluation(methods / "a", right=3, method="random")
    write_evaluation(methods / "b", right=2, method="naive", apply_chat=True)
    write_evaluation(methods / "c", right=1, method="naive", apply_chat=False)
    write_evaluation(methods / "d", right=0, method="ircot", missing=7)
    assert main(["--folder", str(folder), "--methods", str(methods), "--out", str(out)]) == 0
    found = [(row["method"], row["prompt"], row["em"], row["empty"]) for row in rows(out / "methods.csv")]
    assert found == [("naive", "plain", "0.1", "0.1"), ("naive", "chat", "0.2", "0.1"), ("random", "", "0.3", "0.1")]
    printed = capsys.readouterr().out
    assert f"left out, 7 questions are to be asked: {methods}/d\n" in printed
    assert "| naive | chat | 10 | 0 | 20.0 | 0.0 | 100.0 | 20.0 | 20.0 | 10.0 | 1.00 | 2.0 | 80 |" in printed
    assert main(["--folder", str(folder), "--methods", str(folder)]) == 2
    assert "holds no evaluation; scripts/bench/methods.py makes them" in capsys.readouterr().err


def test_a_folder_without_evaluations_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path)]) == 2
    assert f"--folder {tmp_path} holds no evaluation" in capsys.readouterr().err
