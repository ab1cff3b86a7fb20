"""One line of items.jsonl: everything known about one question of a run, as plain JSON values.

A question that could not be answered has an `error`, an empty prediction and no steps; it counts in every mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flashrag.dataset import Question
from flashrag.metrics import holds_answer, supporting_documents
from flashrag.pipeline import Outcome, Step

FAILED = "failed"  # the end_reason of a question that has an error
_PASSAGES = frozenset({"context", "paragraphs"})
MISSING = "Missing"  # the error type of a question that was not asked yet


def answered_record(question: Question, outcome: Outcome, attempt: int) -> dict[str, Any]:
    """The record of an answered question; an episode adds its text as it stood, and what broke the format rule."""
    record = _record(
        question,
        attempt,
        prediction=outcome.prediction,
        end_reason=str(outcome.end_reason),
        usage=asdict(outcome.usage),
        steps=[_step(step, question.golden_answers) for step in outcome.steps],
        error=None,
    )
    if outcome.episode is not None:
        record |= {"text": outcome.episode.text, "format_fault": outcome.episode.format_fault}
    return record


def _step(step: Step, golden_answers: Sequence[str]) -> dict[str, Any]:
    passages = [
        {**passage._asdict(), "has_answer": holds_answer(passage.contents, golden_answers)} for passage in step.passages
    ]
    return {"kind": str(step.kind), "text": step.text, "passages": passages}


def failed_record(question: Question, error: Exception, attempt: int) -> dict[str, Any]:
    """The record of a question whose pipeline raised."""
    reason = {"type": type(error).__name__, "message": str(error)}
    return _record(question, attempt, prediction="", end_reason=FAILED, usage={}, steps=[], error=reason)


def missing_record(question: Question) -> dict[str, Any]:
    """What stands for a question that an interrupted run has not come to: wrong, until it is asked."""
    reason = {"type": MISSING, "message": "the run ended before this question was answered"}
    return _record(question, 0, prediction="", end_reason=FAILED, usage={}, steps=[], error=reason)


def _record(question: Question, attempt: int, **rest: Any) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.question,
        "golden_answers": list(question.golden_answers),
        "prediction": rest["prediction"],
        "end_reason": rest["end_reason"],
        "metrics": {},
        "usage": rest["usage"],
        "steps": rest["steps"],
        "error": rest["error"],
        "attempt": attempt,
        "metadata": _without_passages(question.metadata),
    }


def _without_passages(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata without the data set's own passages, which are longer than an answer; their titles stay."""
    kept = {key: value for key, value in metadata.items() if key not in _PASSAGES}
    support = supporting_documents(metadata)
    if support is not None and support[0] == "title":
        kept["supporting_titles"] = sorted(support[1])
    return kept


def is_failed(record: Mapping[str, Any]) -> bool:
    return record["error"] is not None
