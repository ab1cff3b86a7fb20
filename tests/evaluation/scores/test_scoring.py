"""The metrics of a trajectory and the figures of a run, from trajectories written by hand."""

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from evaluation.report.tables import format_table
from evaluation.scores.scoring import METRICS, MISSING, MetricSettings, Price, score_trajectory, summarize
from flashrag.dataset import Question
from flashrag.document import Passage
from flashrag.episode import SEARCH_O1, EndReason, Episode, Failure, Segment, Source, ToolCall, Trajectory, Usage
from flashrag.pipeline.trace import failed_trajectory

SETTINGS = MetricSettings(retrieval_recall_topk=1)
NUMBERS = count()


def passage(number: str, has_answer: bool, title: str = "T") -> Passage:
    return Passage(number, f'"{title}"\n' + ("King Wu, yes" if has_answer else "text"), 1.0)


def answered(answer: str, gold_answers: list[str], *searches: list[Passage], **metadata: Any) -> Trajectory:
    return Trajectory(
        f"q{next(NUMBERS)}",
        "Who?",
        tuple(gold_answers),
        answer=answer,
        calls=tuple(ToolCall("query", tuple(found)) for found in searches),
        usage=Usage(1000, 100, 0, 2, len(searches), 1.0),
        metadata=metadata,
    )


def scored(trajectory: Trajectory, *names: str) -> Trajectory:
    return replace(trajectory, metrics=score_trajectory(trajectory, names, SETTINGS))


def failed(question: Question, kind: str) -> Trajectory:
    return failed_trajectory(question, Failure(kind, "gone"))


def test_every_metric_of_one_trajectory():
    found = [passage("1", False), passage("2", True, "King Wu")], [passage("3", True)]
    scores = score_trajectory(
        answered("Wu of Zhou", ["King Wu"], *found, golden_doc_ids=["2", "9"]), METRICS, SETTINGS, verdict=True
    )
    # shared: wu. P 1/3, R 1/2, F1 2 * 1/6 / (5/6) = 0.4. The first passage of the second search holds the answer.
    assert scores == {
        "em": 0.0,
        "f1": pytest.approx(0.4),
        "acc": 0.0,
        "precision": pytest.approx(1 / 3),
        "recall": pytest.approx(1 / 2),
        "yes_no_acc": None,
        "retrieval_recall_top1": 1.0,
        "support_coverage": 0.5,
        "llm_judge": 1.0,
    }


def test_an_answer_without_a_verdict_counts_as_wrong():
    assert score_trajectory(answered("Wu", ["Wu"]), ["llm_judge"], SETTINGS, None) == {"llm_judge": 0.0}


def test_failed_and_missing_questions_stay_in_every_denominator_that_they_belong_to():
    name, verdict = Question("a", "Who?", ("Wu",)), Question("b", "Was he?", ("yes",))
    trajectories = [
        answered("Wu", ["Wu"], [passage("1", True)]),
        answered("yes", ["yes"], [passage("1", False)]),
        failed(name, "ValueError"),
        failed(verdict, MISSING),
    ]
    summary = summarize([scored(t, "em", "yes_no_acc", "retrieval_recall") for t in trajectories], SETTINGS)
    assert {key: (row["mean"], row["n"]) for key, row in summary["metrics"].items()} == {
        "em": (2 / 4, 4),
        "yes_no_acc": (1 / 2, 2),  # of the two yes/no questions one was never asked
        "retrieval_recall_top1": (1 / 2, 2),  # of the two others one failed
    }
    assert (summary["n"], summary["n_failed"], summary["n_missing"]) == (4, 1, 1)
    assert summary["failures"] == {"ValueError": 1, "Missing": 1}
    assert summary["usage"]["searches"] == 1.0  # of the two answered ones
    assert "failed 1, missing 1" in format_table({**summary, "method": "m", "dataset": "d", "split": None})


def test_hops_have_figures_of_their_own():
    trajectories = [
        answered("Wu", ["Wu"], hops=1),
        answered("x", ["Wu"], hops=2),
        answered("Wu", ["Wu"], hops=2),
        answered("Wu", ["Wu"]),
    ]
    summary = summarize([scored(trajectory, "em") for trajectory in trajectories], SETTINGS)
    assert {hops: (row["metrics"]["em"]["mean"], row["n"]) for hops, row in summary["by_hops"].items()} == {
        "1": (1.0, 1),
        "2": (0.5, 2),
    }


def test_cost_by_hand():
    price = Price(prompt_usd_per_million=2.0, completion_usd_per_million=10.0)
    settings = MetricSettings(price=price)
    usage = summarize([scored(answered("Wu", ["Wu"]), "em") for _ in range(3)], settings)["usage"]
    # a question: 1,000 * 2 / 1e6 + 100 * 10 / 1e6 = 0.003
    assert usage["cost_usd"] == pytest.approx(0.003)
    assert usage["total_cost_usd"] == pytest.approx(0.009)


def test_where_nothing_was_answered_there_is_no_usage():
    summary = summarize([scored(failed(Question("a", "Who?", ("Wu",)), "ValueError"), "em")], SETTINGS)
    assert summary["usage"] == {}
    assert summary["metrics"]["em"] == {"mean": 0.0, "low": None, "high": None, "n": 1}
    format_table({**summary, "method": "m", "dataset": "d", "split": "dev"})


def test_a_format_rate_is_of_the_dialect_that_was_asked_for():
    """A dialect without a format rule, and a method without an episode, have no rate; a failed question keeps none."""
    name = Question("a", "Who?", ("Wu",))
    valid = replace(scored(answered("Wu", ["Wu"]), "em"), format_valid=True)
    again, invalid = replace(valid, question_id="again"), replace(valid, question_id="invalid", format_valid=False)
    gone = scored(failed(name, "ValueError"), "em")
    assert summarize([valid, again, invalid, gone], SETTINGS)["format_rate"] == 0.5
    boxed = Episode((1,), [Segment(Source.MODEL, r"\boxed{Wu}", (5,))], [], EndReason.EOS, dialect=SEARCH_O1)
    search_o1 = Trajectory.of_episode(boxed, question_id="a", question="Who?", gold_answers=("Wu",))
    assert "format_rate" not in summarize([scored(search_o1, "em")], SETTINGS)
    assert "format_rate" not in summarize([scored(answered("Wu", ["Wu"]), "em"), gone], SETTINGS)
