"""The metrics of a record and the figures of a run, from records written by hand."""

from typing import Any

import pytest

from evaluation.report.summary_table import format_table
from evaluation.run.records import failed_record, missing_record
from evaluation.scores.scoring import METRICS, MetricSettings, Price, score_record, summarize
from flashrag.dataset import Question

SETTINGS = MetricSettings(retrieval_recall_topk=1)


def passage(number: str, has_answer: bool, title: str = "T") -> dict[str, Any]:
    return {"id": number, "contents": f'"{title}"\ntext', "score": 1.0, "has_answer": has_answer}


def record(prediction: str, golds: list[str], *searches: list[dict[str, Any]], **metadata: Any) -> dict[str, Any]:
    return {
        "id": prediction,
        "question": "Who?",
        "golden_answers": golds,
        "prediction": prediction,
        "end_reason": "eos",
        "metrics": {},
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "generator_calls": 2, "searches": len(searches),
                  "latency_s": 1.0},
        "steps": [{"kind": "think", "text": "t", "passages": []},
                  *({"kind": "result", "text": "", "passages": found} for found in searches)],
        "error": None,
        "attempt": 1,
        "metadata": metadata,
    }  # fmt: skip


def test_every_metric_of_one_record():
    found = [passage("1", False), passage("2", True, "King Wu")], [passage("3", True)]
    scores = score_record(
        record("Wu of Zhou", ["King Wu"], *found, golden_doc_ids=["2", "9"]), METRICS, SETTINGS, verdict=True
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
    assert score_record(record("Wu", ["Wu"]), ["llm_judge"], SETTINGS, None) == {"llm_judge": 0.0}


def test_failed_and_missing_questions_stay_in_every_denominator_that_they_belong_to():
    name, verdict = Question("a", "Who?", ("Wu",)), Question("b", "Was he?", ("yes",))
    records = [
        record("Wu", ["Wu"], [passage("1", True)]),
        record("yes", ["yes"], [passage("1", False)]),
        failed_record(name, ValueError("gone"), 2),
        missing_record(verdict),
    ]
    names = ["em", "yes_no_acc", "retrieval_recall"]
    scored = [{**r, "metrics": score_record(r, names, SETTINGS)} for r in records]
    summary = summarize(scored, SETTINGS)
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
    records = [
        record("Wu", ["Wu"], hops=1),
        record("x", ["Wu"], hops=2),
        record("Wu", ["Wu"], hops=2),
        record("Wu", ["Wu"]),
    ]
    summary = summarize([{**r, "metrics": score_record(r, ["em"], SETTINGS)} for r in records], SETTINGS)
    assert {hops: (row["metrics"]["em"]["mean"], row["n"]) for hops, row in summary["by_hops"].items()} == {
        "1": (1.0, 1),
        "2": (0.5, 2),
    }


def test_cost_by_hand():
    price = Price(prompt_usd_per_million=2.0, completion_usd_per_million=10.0)
    settings = MetricSettings(price=price)
    records = [{**record("Wu", ["Wu"]), "metrics": {"em": 1.0}}] * 3
    usage = summarize(records, settings)["usage"]
    # a question: 1,000 * 2 / 1e6 + 100 * 10 / 1e6 = 0.003
    assert usage["cost_usd"] == pytest.approx(0.003)
    assert usage["total_cost_usd"] == pytest.approx(0.009)


def test_where_nothing_was_answered_there_is_no_usage():
    failed = failed_record(Question("a", "Who?", ("Wu",)), ValueError("gone"), 1)
    summary = summarize([{**failed, "metrics": {"em": 0.0}}], SETTINGS)
    assert summary["usage"] == {}
    assert summary["metrics"]["em"] == {"mean": 0.0, "low": None, "high": None, "n": 1}
    format_table({**summary, "method": "m", "dataset": "d", "split": "dev"})
