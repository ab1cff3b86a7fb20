"""What a report shows of one trajectory, read from an evaluation's items or from a training run's rollouts.

Pure views of files that others write: evaluation runs (items.jsonl) and trainings (trajectory_files.py).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashrag.errors import UserError
from flashrag.metrics import exact_match, holds_answer

# A rendered result holds its passages as text, one blank line apart; see flashrag/result.py.
_RESULT_TAGS = re.compile(r"^\s*<(result|information)>\n?|\n?</(result|information)>\s*$")

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of a trajectory. `sampled` says who wrote it (None where the method keeps no tokens)."""

    kind: str
    text: str
    sampled: bool | None = None
    token_count: int | None = None
    passages: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[tuple[str, float | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trajectory:
    id: str
    question: str
    golds: list[str]
    prediction: str
    verdict: str  # right, wrong or failed
    ended_by: str
    searches: int
    tokens: int
    steps: list[Step]
    training_step: int | None = None
    note: str = ""


def evaluated(item: Mapping[str, Any]) -> Trajectory:
    """One line of an evaluation's items.jsonl."""
    error = item.get("error")
    usage = item.get("usage") or {}
    right = float((item.get("metrics") or {}).get("em") or 0.0) > 0.0
    return Trajectory(
        id=str(item["id"]),
        question=item["question"],
        golds=_flat(item["golden_answers"]),
        prediction=item.get("prediction") or "",
        verdict="failed" if error else "right" if right else "wrong",
        ended_by=item.get("end_reason") or "error",
        searches=int(usage.get("searches") or 0),
        tokens=int(usage.get("completion_tokens") or 0),
        steps=[_evaluated_step(step) for step in item.get("steps") or []],
        note=f"{error['type']}: {error['message']}" if error else "",
    )


def _evaluated_step(step: Mapping[str, Any]) -> Step:
    sampled = step.get("sampled")
    return Step(step["kind"], step.get("text") or "", sampled, step.get("tokens"), list(step.get("passages") or []))


def rolled_out(record: Mapping[str, Any], decode: Decode | None = None) -> Trajectory:
    """One line of a training run's trajectory file; `decode` (ids to text) shows the tokens one by one."""
    golds = _flat(record["gold_answers"])
    return Trajectory(
        id=str(record["question_id"]),
        question=record["question"],
        golds=golds,
        prediction=record["answer"] or "",
        verdict="right" if exact_match(record["answer"] or "", golds) else "wrong",
        ended_by=record["ended_by"],
        searches=len(record["searches"]),
        tokens=sum(len(segment["token_ids"]) for segment in record["segments"] if segment["source"] == "model"),
        steps=[_segment_step(segment, golds, decode) for segment in record["segments"]],
        training_step=record["step"],
        note=f"reward {record['reward']:g}: {record['reason']}",
    )


def _segment_step(segment: Mapping[str, Any], golds: list[str], decode: Decode | None) -> Step:
    sampled = segment["source"] == "model"
    ids, log_probs = segment["token_ids"], segment["log_probs"] or [None] * len(segment["token_ids"])
    tokens = [(decode([token]), log_prob) for token, log_prob in zip(ids, log_probs, strict=True)] if decode else []
    passages = [] if sampled else _passages(segment["text"], golds)
    return Step("model" if sampled else "result", segment["text"], sampled, len(ids), passages, tokens)


def _passages(result: str, golds: list[str]) -> list[dict[str, Any]]:
    contents = _RESULT_TAGS.sub("", result).split("\n\n")
    return [{"contents": text, "has_answer": holds_answer(text, golds)} for text in contents if text.strip()]


def _flat(golds: Any) -> list[str]:
    if isinstance(golds, list):
        return [text for gold in golds for text in _flat(gold)]
    return [str(golds)]


def read_rollouts(folder: Path, decode: Decode | None = None) -> Iterator[Trajectory]:
    """The trajectories of a training run's folder (train, then val, by step); raises `UserError` for a bad line."""
    # Here, not above: an environment that only evaluates need not have the trainer's plugin.
    from verl_search.rollout.trajectory_files import read_file, trajectory_files

    for file in trajectory_files(folder):
        for record in read_file(file):
            try:
                yield rolled_out(record, decode)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{file} holds a record that is no trajectory ({error!r})") from error


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a jsonl file. A torn last line (of a run that was killed) is left out; another one is refused."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no line break behind it: it was being written
                return
            raise UserError(f"{path}: line {number} is no JSON ({error}); the file is damaged there") from error
