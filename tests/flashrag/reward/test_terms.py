"""Each term of a reward, and their weighted sum, worked out by hand."""

from typing import Any

import pytest

from flashrag.document import Passage
from flashrag.episode import Failure, ToolCall, Trajectory, Usage
from flashrag.reward import Reward, reward_function, rewarded
from flashrag.reward.terms import TERMS


def answered(answer: str = "King Wu of Zhou", **fields: Any) -> Trajectory:
    """Two searches, of which the second found "King Wu", and 1,500 sampled tokens."""
    calls = (
        ToolCall("q", (Passage("1", "text"), Passage("2", "more"))),
        ToolCall("r", (Passage("3", "text"), Passage("4", "Of King Wu."))),
        ToolCall("", error="empty"),
    )
    usage = Usage(completion_tokens=1500, result_tokens=9000, searches=2)
    given = {"answer": answer, "calls": calls, "usage": usage, "format_valid": True, **fields}
    return Trajectory("q", "Who?", ("King Wu",), **given)


@pytest.mark.parametrize(
    ("term", "trajectory", "value"),
    [
        ("em", answered("king wu"), 1.0),
        ("em", answered(), 0.0),
        ("f1", answered(), pytest.approx(2 / 3)),  # 2 of 4 words shared with 2: P 1/2, R 1, F1 2 * 1/2 / 1.5
        ("cover_em", answered(), 1.0),
        ("cover_em", answered("Wu"), 0.0),
        ("format", answered(), 1.0),
        ("format", answered(format_valid=False), 0.0),
        ("format", answered(format_valid=None), 0.0),  # a method without a format rule earns nothing by it
        ("retrieval_hit", answered(), 1.0),
        ("retrieval_hit", answered(calls=()), 0.0),
        ("retrieval_hit", answered(calls=(ToolCall("print", (Passage("0", "King Wu"),), tool="python"),)), 0.0),
        ("searches", answered(), 2.0),  # a call that could not be made is none
        ("length", answered(), 1.5),
        ("judge", answered(metrics={"llm_judge": 1.0}), 1.0),
        ("judge", answered(metrics={"llm_judge": 0.0}), 0.0),
    ],
)
def test_a_term(term: str, trajectory: Trajectory, value: float) -> None:
    assert TERMS[term](trajectory, trajectory.gold_answers) == value


def test_no_passage_holds_a_yes_or_no() -> None:
    assert TERMS["retrieval_hit"](answered(), ["yes"]) == 0.0


def test_a_reward_is_the_sum_of_its_weighted_terms() -> None:
    weights = {"f1": 1.0, "format": 0.1, "retrieval_hit": 0.2, "searches": -0.05, "length": -0.1}
    reward = reward_function(weights)(answered("King Wu"), ["King Wu"])
    # 1 + 0.1 + 0.2 - 2 * 0.05 - 1.5 * 0.1
    assert reward.value == pytest.approx(1.05)
    assert reward.terms == pytest.approx(
        {"f1": 1.0, "format": 0.1, "retrieval_hit": 0.2, "searches": -0.1, "length": -0.15}
    )
    assert reward.reason == "f1 +1, format +0.1, retrieval_hit +0.2, searches -0.1, length -0.15: 'King Wu'"


def test_what_each_term_adds_stands_among_the_metrics() -> None:
    kept = rewarded(answered("Wu", metrics={"em": 0.0}), reward_function({"em": 1.0, "searches": -0.5}))
    assert (kept.reward, kept.metrics) == (-1.0, {"em": 0.0, "reward_em": 0.0, "reward_searches": -1.0})


def test_a_question_without_an_answer_has_nothing() -> None:
    gone = Trajectory("q", "Who?", ("King Wu",), metrics={"llm_judge": 0.0}, error=Failure("SearchError", "gone"))
    weights = dict.fromkeys(TERMS, -1.0)
    reward = reward_function(weights)(gone, gone.gold_answers)
    assert (reward.value, str(reward.value), dict(reward.terms)) == (0.0, "0.0", dict.fromkeys(TERMS, 0.0))
    assert isinstance(reward, Reward)
