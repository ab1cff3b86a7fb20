"""The trajectory: what a line holds, that it comes back exactly, and how a person reads it."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashrag.document import Passage
from flashrag.episode import (
    PYTHON,
    RESEARCH,
    SEARCH_O1,
    SEARCH_R1,
    EndReason,
    Episode,
    Failure,
    LiveSteps,
    Piece,
    Segment,
    Source,
    StepKind,
    ToolCall,
    Trajectory,
    Usage,
    steps,
)
from flashrag.errors import UserError

QUERY = "<think> who? </think> <search> first king </search>"
RESULT = " <result>\nKing Wu\n</result>"
ANSWER = r"<think> t </think> <answer> \boxed{King Wu} </answer>"
EPISODE = Episode(
    (1, 2),
    [
        Segment(Source.MODEL, QUERY, (10, 11, 12), (-0.5, -2.0, -0.25)),
        Segment(Source.RESULT, RESULT, (20, 21), call=0),
        Segment(Source.MODEL, ANSWER, (13,), (-0.5,)),
    ],
    [ToolCall("first king", (Passage("7", '"King"\nKing Wu', 0.5),), 0.125)],
    EndReason.EOS,
    generate_spans=[(100.0, 101.5), (102.0, 102.25)],
)
ASKED = {"question_id": "id1", "question": "Who?", "gold_answers": ("King Wu",)}
TRAINED = Trajectory.of_episode(
    EPISODE,
    **ASKED,
    data_source="hotpotqa",
    reward=1.0,
    reward_reason="em 1.00: 'King Wu'",
    metrics={"em": 1.0, "f1": 1.0},
    split="train",
    step=3,
    weights_steps=(2, 2),
    group_id="u7",
    session=1,
    written_at=1.5e9,
)


def test_a_line_holds_every_field() -> None:
    line = json.loads(TRAINED.to_json())
    assert time.time() - Trajectory(**ASKED).written_at < 60
    first, result, _ = line.pop("segments")
    assert (first["source"], first["token_ids"], first["call"]) == ("model", [10, 11, 12], None)
    assert result == {"source": "result", "text": RESULT, "token_ids": [20, 21], "log_probs": None, "call": 0}
    assert line == {
        "version": 3,
        "written_at": 1.5e9,
        "question_id": "id1",
        "question": "Who?",
        "gold_answers": ["King Wu"],
        "answer": "King Wu",
        "end_reason": "eos",
        "dialect": "research",
        "format_valid": True,
        "format_fault": None,
        "calls": [
            {
                "query": "first king",
                "passages": [{"id": "7", "contents": '"King"\nKing Wu', "score": 0.5}],
                "latency_s": 0.125,
                "error": None,
                "tool": "search",
            }
        ],
        "prompt_ids": [1, 2],
        # Two requests: 2 prompt tokens, then 2 + 3 + 2. Latency: 1.5 + 0.25 in the engine, 0.125 in the search.
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "result_tokens": 2,
            "generator_calls": 2,
            "searches": 1,
            "latency_s": 1.875,
        },
        "generate_spans": [[100.0, 101.5], [102.0, 102.25]],
        "metrics": {"em": 1.0, "f1": 1.0},
        "metadata": {},
        "data_source": "hotpotqa",
        "reward": 1.0,
        "reward_reason": "em 1.00: 'King Wu'",
        "split": "train",
        "step": 3,
        "weights_steps": [2, 2],
        "group_id": "u7",
        "session": 1,
        "attempt": 1,
        "error": None,
    }


def test_a_line_comes_back_exactly() -> None:
    assert Trajectory.from_json(TRAINED.to_json()) == TRAINED
    failed = Trajectory(**ASKED, end_reason="failed", error=Failure("SearchError", "gone"), usage=Usage(latency_s=1.5))
    assert Trajectory.from_json(failed.to_json()) == failed
    assert (failed.failed, str(failed.error), TRAINED.failed) == (True, "SearchError: gone", False)


def test_a_line_of_version_2_is_read() -> None:
    line = TRAINED.to_json().replace(b'"version":3', b'"version":2')
    assert Trajectory.from_json(line) == replace(TRAINED, version=2)


def test_a_forced_search_is_a_step_that_the_model_did_not_write() -> None:
    """Two requests: 2 prompt tokens and 5 spliced ones, then 3 sampled and 2 spliced ones more."""
    segments = [
        Segment(Source.FORCED, " <search> Who? </search>", (5, 6, 7)),
        Segment(Source.RESULT, RESULT, (20, 21), call=0),
        Segment(Source.MODEL, "<think> t </think> <search> q </search>", (10, 11, 12)),
        Segment(Source.RESULT, RESULT, (20, 21), call=1),
        Segment(Source.MODEL, ANSWER, (13,)),
    ]
    passage = Passage("7", '"King"\nKing Wu', 0.5)
    calls = [ToolCall("Who?", (passage,)), ToolCall("q", (passage,))]
    made = Trajectory.of_episode(Episode((1, 2), segments, calls, EndReason.EOS), **ASKED)
    assert Trajectory.from_json(made.to_json()) == made
    assert made.usage == Usage(7 + 12, 4, 7, 2, 2, 0.0)
    kinds = [(step.kind, step.text) for step in steps(made)][:4]
    assert kinds[0] == (StepKind.FORCED, "Who?")
    assert [kind for kind, _ in kinds] == [StepKind.FORCED, StepKind.RESULT, StepKind.THINK, StepKind.QUERY]
    shown: list[Piece] = []
    live = LiveSteps(shown.append, "research")
    for segment in segments:
        live.ends(segment, None if segment.call is None else calls[segment.call])
    assert [(piece.kind, piece.text) for piece in shown[:2]] == [
        (StepKind.FORCED, "Who?"),
        (StepKind.RESULT, "King Wu"),
    ]
    assert made.format_fault is None


def test_log_probabilities_come_back_as_the_float32_of_the_engine() -> None:
    log_probs = tuple(float(value) for value in np.float32([-0.1, -2.0000001, -3.0694458]))
    line = Trajectory(**ASKED, segments=(Segment(Source.MODEL, "abc", (1, 2, 3), log_probs),)).to_json()
    assert b"-3.0694458]" in line  # nine digits, not seventeen
    assert np.float32(Trajectory.from_json(line).segments[0].log_probs).tolist() == list(log_probs)


def test_half_a_character_does_not_spoil_a_line() -> None:
    line = Trajectory("id1", "a\ud800b\u2028c", ("Wu",)).to_json()
    assert b"\n" not in line
    assert Trajectory.from_json(line).question == "a?b\u2028c"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            b'{"version": 1, "question_id": "1", "question": "q", "gold_answers": []}',
            r"version 3 or 2 \(version: Input",
        ),
        (b'{"question_id": "1"}', r"\(question: Field required\)"),
        (b"{", "Invalid JSON"),
    ],
)
def test_a_line_that_is_no_trajectory_is_refused_with_its_reason(line: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Trajectory.from_json(line)


def test_the_documentation_names_exactly_these_fields() -> None:
    page = (Path(__file__).parents[3] / "docs" / "trajectories.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z0-9_]+)` \|", page, re.MULTILINE)
    assert documented == list(json.loads(TRAINED.to_json()))


def test_answer_and_format_are_the_dialects() -> None:
    """A good episode of one dialect is not judged by the rule of another; a dialect without a rule has no verdict."""
    search_r1 = [
        Segment(Source.MODEL, "<think> t </think> <search> king </search>"),
        Segment(Source.RESULT, "\n\n<information>King Wu</information>\n\n", call=0),
        Segment(Source.MODEL, "<think> t </think> <answer> King Wu </answer>"),
    ]
    cases = [
        (EPISODE, True),
        (Episode((1,), search_r1, [ToolCall("king")], EndReason.ANSWERED, dialect=SEARCH_R1), True),
        (Episode((1,), search_r1[:1], [], EndReason.EOS, dialect=SEARCH_R1), False),
        (Episode((1,), [Segment(Source.MODEL, r"so \boxed{King Wu}")], dialect=SEARCH_O1), None),
        (Episode((1,), search_r1, [ToolCall("king")], EndReason.EOS, dialect=RESEARCH), False),
    ]
    for episode, valid in cases:
        trajectory = Trajectory.of_episode(episode, **ASKED)
        assert trajectory.format_valid is valid
        assert (trajectory.format_fault is None) is (valid is not False)
    assert [Trajectory.of_episode(episode, **ASKED).answer for episode, _ in cases[:4]] == [
        "King Wu",
        "King Wu",
        "",
        "King Wu",
    ]


def shown(trajectory: Trajectory) -> list[tuple[str, str]]:
    return [(step.kind, step.text) for step in steps(trajectory)]


def test_an_episode_reads_as_its_blocks() -> None:
    assert shown(TRAINED) == [
        ("think", "who?"),
        ("query", "first king"),
        ("result", "King Wu"),
        ("think", "t"),
        ("generation", r"<answer> \boxed{King Wu} </answer>"),
        ("answer", "King Wu"),
    ]
    assert [passage.id for step in steps(TRAINED) for passage in step.passages] == ["7"]


def test_a_block_left_open_ends_where_the_next_begins() -> None:
    text = "well <think> never closed <search> king </search>"
    episode = Episode((1,), [Segment(Source.MODEL, text)], dialect=RESEARCH.with_calls(PYTHON))
    assert shown(Trajectory.of_episode(episode, **ASKED)) == [
        ("generation", "well"),
        ("think", "never closed"),
        ("query", "king"),
        ("answer", ""),
    ]


def test_a_method_on_text_reads_as_its_requests() -> None:
    """The query stands in no text of the model, and given passages have none."""
    found, given = (Passage("7", "King Wu", 0.5),), (Passage("8", "Zhou"),)
    trajectory = Trajectory(
        **ASKED,
        answer="Wu",
        segments=(
            Segment(Source.RESULT, "", call=0),
            Segment(Source.MODEL, "thinking"),
            Segment(Source.RESULT, "", call=1),
        ),
        calls=(ToolCall("king", found), ToolCall("", given)),
    )
    assert shown(trajectory) == [
        ("query", "king"),
        ("result", ""),
        ("generation", "thinking"),
        ("result", ""),
        ("answer", "Wu"),
    ]
    assert [step.passages for step in steps(trajectory) if step.kind == "result"] == [found, given]
