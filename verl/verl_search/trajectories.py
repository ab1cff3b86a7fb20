"""Trajectories on disk: every episode of every step, one JSON object a line, train and validation apart.

`<trajectory_dir>/<train|val>/step_000010.<process>.jsonl`: each process appends to files of its own and flushes after
each line, so a killed run loses at most the line being written. `pandas.read_json(path, lines=True)` reads one.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flashrag.episode import Episode, InvariantViolation
from verl_search.reward import Reward


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """What is kept of one episode beside the episode itself."""

    question_id: str
    data_source: str
    question: str
    gold_answers: Sequence[str]
    step: int
    split: str
    episode: Episode
    reward: Reward


def as_json(record: TrajectoryRecord) -> str:
    """One line of a trajectory file, without the line break."""
    episode = record.episode
    return json.dumps(
        {
            "question_id": record.question_id,
            "data_source": record.data_source,
            "step": record.step,
            "question": record.question,
            "gold_answers": list(record.gold_answers),
            "answer": episode.answer,
            "reward": record.reward.value,
            "reason": record.reward.reason,
            "em": record.reward.answer.em,
            "f1": record.reward.answer.f1,
            "ended_by": episode.ended_by,
            "format_fault": episode.format_fault and episode.format_fault.name.lower(),
            "searches": [asdict(search) for search in episode.searches],
            "segments": [
                {"source": s.source, "text": s.text, "token_ids": s.token_ids, "log_probs": s.log_probs}
                for s in episode.segments
            ],
            "prompt_ids": episode.prompt_ids,
            "generate_s": episode.generate_s,
        },
        ensure_ascii=False,
    )


def append_trajectory(directory: Path, record: TrajectoryRecord) -> None:
    """Append one record to this process's file of its step."""
    path = directory / record.split / f"step_{record.step:06d}.{os.getpid()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(as_json(record) + "\n")


def write_violation(directory: Path, question: str, violation: InvariantViolation) -> Path:
    """Write the trajectory of a violated invariant to a file of its own and return its path."""
    episode = violation.episode
    path = directory / "violations" / f"{os.getpid()}_{id(episode):x}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"violation": str(violation), "question": question, "episode": asdict(episode)}
    path.write_text(json.dumps(content, ensure_ascii=False, default=str, indent=1), encoding="utf-8")
    return path
