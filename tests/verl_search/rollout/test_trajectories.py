"""What a trajectory's line holds, field by field as docs/trajectories.md names them."""

import json
import re
import time
from pathlib import Path

import numpy as np

from flashrag.episode import EndReason, Episode, InvariantViolation, SearchRecord, Segment, Source
from verl_search.rollout.reward import episode_reward
from verl_search.rollout.trajectories import TrajectoryRecord, as_json, write_violation

LOG_PROBS = tuple(float(value) for value in np.float32([-0.1, -2.0000001, -3.0694458]))
EPISODE = Episode(
    (1, 2),
    [Segment(Source.MODEL, "naïve \u2028 text", (10, 11, 12), LOG_PROBS), Segment(Source.RESULT, "r", (20,))],
    [SearchRecord("q", ("7", "9"), 0.125, scores=(0.5, 0.25))],
    EndReason.LENGTH,
    generate_spans=[(100.0, 101.5)],
)
RECORD = TrajectoryRecord(
    "id1", "hotpotqa", "Who?", ["Wu"], 3, "train", "u7", 1, (2, 2), EPISODE, episode_reward(EPISODE, ["Wu"])
)


def test_a_line_holds_every_field() -> None:
    line = json.loads(as_json(RECORD))
    assert time.time() - line.pop("written_at") < 60
    assert line.pop("segments")[1] == {"source": "result", "text": "r", "token_ids": [20], "log_probs": None}
    assert line == {
        "version": 1,
        "split": "train",
        "step": 3,
        "weights_steps": [2, 2],
        "group_id": "u7",
        "session": 1,
        "question_id": "id1",
        "data_source": "hotpotqa",
        "question": "Who?",
        "gold_answers": ["Wu"],
        "answer": "",
        "reward": 0.0,
        "reason": "format: the response did not end by itself (ended by length)",
        "em": 0.0,
        "f1": 0.0,
        "ended_by": "length",
        "format_fault": "not_ended",
        "generate_s": 1.5,
        "generate_spans": [[100.0, 101.5]],
        "sampled_tokens": 3,
        "spliced_tokens": 1,
        "searches": [
            {
                "query": "q",
                "document_ids": ["7", "9"],
                "scores": [0.5, 0.25],
                "latency_s": 0.125,
                "error": None,
                "tool": "search",
            }
        ],
        "prompt_ids": [1, 2],
    }


def test_what_was_sampled_comes_back_exactly() -> None:
    segment = json.loads(as_json(RECORD))["segments"][0]
    assert (segment["text"], segment["token_ids"]) == ("naïve \u2028 text", [10, 11, 12])
    assert np.float32(segment["log_probs"]).tolist() == list(LOG_PROBS)
    assert b"-3.0694458]" in as_json(RECORD)  # nine digits, not seventeen


def test_the_documentation_names_exactly_these_fields() -> None:
    page = (Path(__file__).parents[3] / "docs" / "trajectories.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z0-9_]+)` \|", page, re.MULTILINE)
    assert documented == list(json.loads(as_json(RECORD)))


def test_a_violation_is_written_with_its_trajectory(tmp_path: Path) -> None:
    path = write_violation(tmp_path, "Who?", InvariantViolation("masks differ", EPISODE))
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["violation"] == "masks differ"
    assert written["episode"]["segments"][0]["token_ids"] == [10, 11, 12]
