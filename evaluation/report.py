"""What an evaluation leaves behind: predictions.jsonl, metrics.json and config.yaml, each whole or not there."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from flashrag.pipeline import Outcome


def prediction_record(outcome: Outcome, *, with_trajectory: bool) -> dict[str, Any]:
    """One line of predictions.jsonl; with the trajectory it carries text, token ids and loss mask of the response."""
    question, answer, episode = outcome.question, outcome.answer, outcome.answer.episode
    record: dict[str, Any] = {
        "id": question.id,
        "question": question.question,
        "golden_answers": list(question.golden_answers),
        "prediction": "" if answer.failure else answer.prediction,
        **outcome.score._asdict(),
        "searches": [asdict(search) for search in answer.searches],
        "ended_by": episode.ended_by.value if episode else None,
        "format_fault": _format_fault(outcome),
        "failure": answer.failure,
        "prompt_tokens": len(episode.prompt_ids) if episode else 0,
        "response_tokens": len(episode.response_ids) if episode else 0,
        "sampled_tokens": sum(episode.loss_mask) if episode else 0,
        "seconds": round(outcome.seconds, 4),
        "metadata": dict(question.metadata),
    }
    if with_trajectory:
        record |= {
            "text": episode.text if episode else "",
            "response_ids": episode.response_ids if episode else [],
            "loss_mask": episode.loss_mask if episode else [],
        }
    return record


def _format_fault(outcome: Outcome) -> str | None:
    episode = outcome.answer.episode
    if episode is None:
        return None
    fault = episode.format_fault
    return fault.value if fault else None


def summarize(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> dict[str, Any]:
    """The means over all questions, failed ones included, and the same for each value of `metadata["hops"]`."""
    summary = _means(outcomes, metrics)
    by_hops: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if "hops" in outcome.question.metadata:
            by_hops[str(outcome.question.metadata["hops"])].append(outcome)
    if by_hops:
        summary["by_hops"] = {hops: _means(by_hops[hops], metrics) for hops in sorted(by_hops)}
    return summary


def _means(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> dict[str, Any]:
    count = len(outcomes)
    means = {name: sum(getattr(outcome.score, name) for outcome in outcomes) / count for name in metrics}
    valid = sum(o.answer.episode is not None and o.answer.episode.format_fault is None for o in outcomes)
    return {
        **means,
        "searches": sum(len(outcome.answer.searches) for outcome in outcomes) / count,
        "format_rate": valid / count,
        "n_questions": count,
        "n_failed": sum(outcome.answer.failure is not None for outcome in outcomes),
    }


def format_table(title: str, summary: Mapping[str, Any]) -> str:
    """The summary as a few lines of text: one row for all questions, one for each number of hops."""
    rows = {"all": summary, **{f"{hops}-hop": row for hops, row in summary.get("by_hops", {}).items()}}
    columns = [name for name in summary if name in next(iter(rows.values())) and _is_figure(summary[name])]
    widths = [max(len(name), 8) for name in columns]
    lines = [title, " ".join(["         ", *(name.rjust(width) for name, width in zip(columns, widths, strict=True))])]
    for label, row in rows.items():
        cells = [
            _cell(row[name]).rjust(width) if name in row else " " * width
            for name, width in zip(columns, widths, strict=True)
        ]
        lines.append(" ".join([label.ljust(9), *cells]))
    return "\n".join(lines)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A lone surrogate (half a character that the model sampled) is written as "?", not as an error.
        unfinished.write_text(text, encoding="utf-8", errors="replace")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
