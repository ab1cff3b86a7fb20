"""Trajectories as they are kept: every episode of every step as one JSON object; docs/trajectories.md names each field.

Does not cover: the files (trajectory_files.py).
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson

from flashrag.episode import Episode, InvariantViolation, Source
from verl_search.rollout.measures import count_tokens
from verl_search.rollout.reward import Reward

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """What is kept of one episode beside the episode itself.

    `group_id` is common to the episodes that one question was given in a step; `weights_steps` are the first and the
    last step after which the weights that sampled it were taken, where the engine says so.
    """

    question_id: str
    data_source: str
    question: str
    gold_answers: Sequence[str]
    step: int
    split: str
    group_id: str
    session: int
    weights_steps: tuple[int | None, int | None]
    episode: Episode
    reward: Reward


def as_json(record: TrajectoryRecord) -> bytes:
    """One line of a trajectory file, without the line break."""
    episode = record.episode
    return orjson.dumps(
        {
            "version": SCHEMA_VERSION,
            "written_at": time.time(),
            "split": record.split,
            "step": record.step,
            "weights_steps": record.weights_steps,
            "group_id": record.group_id,
            "session": record.session,
            "question_id": record.question_id,
            "data_source": record.data_source,
            "question": record.question,
            "gold_answers": list(record.gold_answers),
            "answer": episode.answer,
            "reward": record.reward.value,
            "reason": record.reward.reason,
            "em": record.reward.answer.em,
            "f1": record.reward.answer.f1,
            "ended_by": episode.ended_by,
            "format_fault": episode.format_fault and episode.format_fault.name.lower(),
            "generate_s": episode.generate_s,
            "generate_spans": episode.generate_spans,
            "sampled_tokens": count_tokens(episode, Source.MODEL),
            "spliced_tokens": count_tokens(episode, Source.RESULT),
            "searches": episode.searches,
            "segments": [
                {
                    "source": s.source,
                    "text": s.text,
                    "token_ids": s.token_ids,
                    # The engine's numbers are float32: written as such they take half the digits and lose nothing.
                    "log_probs": None if s.log_probs is None else np.asarray(s.log_probs, np.float32),
                }
                for s in episode.segments
            ],
            "prompt_ids": episode.prompt_ids,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def write_violation(directory: Path, question: str, violation: InvariantViolation) -> Path:
    """Write the trajectory of a violated invariant to a file of its own and return its path."""
    episode = violation.episode
    path = directory / "violations" / f"{os.getpid()}_{id(episode):x}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"violation": str(violation), "question": question, "episode": asdict(episode)}
    path.write_text(json.dumps(content, ensure_ascii=False, default=str, indent=1), encoding="utf-8")
    return path
