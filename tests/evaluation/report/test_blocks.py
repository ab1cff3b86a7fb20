"""Trajectories in the viewer: verdicts, notes, and blocks with their provenance."""

from dataclasses import replace

from evaluation.report.page import blocks, note, verdict
from flashrag.document import Passage
from flashrag.episode import EndReason, Episode, Failure, Segment, Source, ToolCall, Trajectory

FOUND = (Passage("1", '"Fishport"\nThe river is Marara.', 0.5), Passage("2", '"Gull"\nNone.', 0.25))
ROLLOUT = Trajectory.of_episode(
    Episode(
        (1,),
        [
            Segment(Source.MODEL, "<search> F </search>", (5, 6, 7), (-0.1, -0.2, -0.3)),
            Segment(Source.RESULT, " <result>\n…\n</result>", (8, 9), call=0),
            Segment(Source.MODEL, r"<answer> \boxed{the marara} </answer>", (5,), (-0.4,)),
        ],
        [ToolCall("F", FOUND)],
        EndReason.EOS,
    ),
    question_id="t1",
    question="Which river?",
    gold_answers=("Marara",),
    reward=1.0,
    reward_reason="em 1.00",
)
ANSWERED = Trajectory(
    "q1",
    "Which river?",
    ("Marara",),
    answer="Gull",
    segments=(Segment(Source.RESULT, "", call=0), Segment(Source.MODEL, "It is Gull.")),
    calls=(ToolCall("Fishport", FOUND),),
)


def test_a_trajectory_is_right_wrong_or_failed():
    assert (verdict(ROLLOUT), verdict(ANSWERED)) == ("right", "wrong")
    failed = replace(ROLLOUT, error=Failure("SearchError", "gone"))
    assert (verdict(failed), note(failed)) == ("failed", "SearchError: gone")
    assert (note(ROLLOUT), note(ANSWERED)) == ("reward 1: em 1.00", "")


def test_an_episode_shows_its_segments_with_their_source():
    shown = blocks(ROLLOUT)
    assert [(block.kind, block.sampled, block.token_count) for block in shown] == [
        ("model", True, 3),
        ("result", False, 2),
        ("model", True, 1),
    ]
    assert [(p["id"], p["score"], p["has_answer"]) for p in shown[1].passages] == [("1", 0.5, True), ("2", 0.25, False)]


def test_a_method_on_text_shows_its_steps():
    assert [(block.kind, block.text, block.sampled) for block in blocks(ANSWERED)] == [
        ("query", "Fishport", None),
        ("result", "", None),
        ("generation", "It is Gull.", None),
        ("answer", "Gull", None),
    ]
    assert [p["has_answer"] for p in blocks(ANSWERED)[1].passages] == [True, False]


def test_tokens_are_shown_one_by_one_where_they_can_be_decoded():
    shown = blocks(ROLLOUT, decode=lambda ids: f"<{ids[0]}>")
    assert shown[0].tokens == [("<5>", -0.1), ("<6>", -0.2), ("<7>", -0.3)]
    assert shown[1].tokens == [("<8>", None), ("<9>", None)]
