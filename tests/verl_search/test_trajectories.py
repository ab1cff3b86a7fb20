"""Trajectories on disk: one JSON object a line, in files that name split and step."""

import json
from pathlib import Path

import pandas

from flashrag.episode import EndReason, Episode, InvariantViolation, SearchRecord, Segment, Source
from verl_search.reward import episode_reward
from verl_search.trajectories import TrajectoryRecord, append_trajectory, write_violation

EPISODE = Episode(
    (1, 2),
    [Segment(Source.MODEL, "naïve \u2028 text", (10, 11), (-0.5, -0.25)), Segment(Source.RESULT, "r", (20,))],
    [SearchRecord("q", ("7", "9"), 0.125)],
    EndReason.LENGTH,
)


def record(split: str, step: int) -> TrajectoryRecord:
    return TrajectoryRecord("id1", "hotpotqa", "Who?", ["Wu"], step, split, EPISODE, episode_reward(EPISODE, ["Wu"]))


def test_records_are_appended_by_split_and_step(tmp_path: Path) -> None:
    for _ in range(2):
        append_trajectory(tmp_path, record("train", 3))
    append_trajectory(tmp_path, record("val", 0))
    (train_file,) = (tmp_path / "train").glob("step_000003.*.jsonl")
    assert len(list((tmp_path / "val").glob("step_000000.*.jsonl"))) == 1
    frame = pandas.read_json(train_file, lines=True)
    assert len(frame) == 2
    row = json.loads(train_file.read_text(encoding="utf-8").split("\n")[0])
    assert row["segments"][0] == {
        "source": "model",
        "text": "naïve \u2028 text",
        "token_ids": [10, 11],
        "log_probs": [-0.5, -0.25],
    }
    assert row["searches"] == [
        {"query": "q", "document_ids": ["7", "9"], "latency_s": 0.125, "error": None, "tool": "search", "scores": []}
    ]
    assert (row["ended_by"], row["format_fault"], row["reward"]) == ("length", "not_ended", 0.0)


def test_a_violation_is_written_with_its_trajectory(tmp_path: Path) -> None:
    path = write_violation(tmp_path, "Who?", InvariantViolation("masks differ", EPISODE))
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["violation"] == "masks differ"
    assert written["episode"]["segments"][0]["token_ids"] == [10, 11]
