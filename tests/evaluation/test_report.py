"""The figures and files of an evaluation, from outcomes written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.report import format_table, prediction_record, summarize, write_json, write_predictions
from flashrag.dataset import Question
from flashrag.episode import EndReason, Episode, SearchRecord, Segment, Source
from flashrag.metrics import AnswerScore
from flashrag.pipeline import Answer, Outcome

VALID = r"<think> t </think> <answer> \boxed{Wu} </answer>"
SEARCH = SearchRecord("Zhou", ("7", "8"), 0.25)


def outcome(em: float, *, searches: int = 0, text: str = VALID, failure: str | None = None, **metadata: Any) -> Outcome:
    episode = Episode((1, 2), [Segment(Source.MODEL, text, (3, 4, 0))], ended_by=EndReason.EOS)
    answer = Answer("Wu", (SEARCH,) * searches, episode, failure)
    return Outcome(Question("a", "Who?", ("Wu",), metadata), answer, AnswerScore(em, em, em), 1.5)


def test_means_are_over_all_questions_failed_ones_included():
    failed = Outcome(Question("b", "Who?", ("Wu",)), Answer("", failure="gone"), AnswerScore(0.0, 0.0, 0.0), 0.1)
    summary = summarize(
        [outcome(1.0, searches=2), outcome(0.0, searches=1, text="x"), failed, outcome(1.0)], ["em", "f1"]
    )
    assert summary == {
        "em": 2 / 4,
        "f1": 2 / 4,
        "searches": 3 / 4,
        "format_rate": 2 / 4,
        "n_questions": 4,
        "n_failed": 1,
    }


def test_hops_have_figures_of_their_own():
    outcomes = [outcome(1.0, hops=1), outcome(0.0, hops=2, searches=2), outcome(1.0, hops=2), outcome(1.0)]
    summary = summarize(outcomes, ["em"])
    assert {hops: (row["em"], row["searches"], row["n_questions"]) for hops, row in summary["by_hops"].items()} == {
        "1": (1.0, 0.0, 1),
        "2": (0.5, 1.0, 2),
    }
    table = format_table("title", summary).splitlines()
    assert [line.split()[:2] for line in table[2:]] == [["all", "0.7500"], ["1-hop", "1.0000"], ["2-hop", "0.5000"]]


def test_a_record_holds_what_happened():
    record = prediction_record(outcome(1.0, searches=1, hops=2), with_trajectory=True)
    assert record == {
        "id": "a",
        "question": "Who?",
        "golden_answers": ["Wu"],
        "prediction": "Wu",
        "em": 1.0,
        "f1": 1.0,
        "acc": 1.0,
        "searches": [{"query": "Zhou", "document_ids": ("7", "8"), "latency_s": 0.25, "error": None}],
        "ended_by": "eos",
        "format_fault": None,
        "failure": None,
        "prompt_tokens": 2,
        "response_tokens": 3,
        "sampled_tokens": 3,
        "seconds": 1.5,
        "metadata": {"hops": 2},
        "text": VALID,
        "response_ids": [3, 4, 0],
        "loss_mask": [1, 1, 1],
    }


def test_a_failed_question_has_no_prediction():
    record = prediction_record(outcome(0.0, failure="search failed: gone"), with_trajectory=False)
    assert (record["prediction"], record["failure"]) == ("", "search failed: gone")


def test_half_a_character_does_not_spoil_the_file(tmp_path: Path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [{"text": "a\ud800b\u2028c"}, {"text": "é"}])
    assert [json.loads(line)["text"] for line in path.read_text("utf-8").split("\n")[:-1]] == ["a?b\u2028c", "é"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path):
    path = tmp_path / "metrics.json"
    write_json(path, {"em": 1.0})
    with pytest.raises(TypeError):
        write_json(path, {"em": object()})
    assert json.loads(path.read_text()) == {"em": 1.0}
    assert list(tmp_path.iterdir()) == [path]
