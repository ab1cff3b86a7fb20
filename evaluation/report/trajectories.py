"""Trajectories as the report's viewer shows them: a row for the list, and blocks of text with their provenance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashrag.document import Passage
from flashrag.episode import Segment, Source, StepKind, Trajectory, steps
from flashrag.metrics import exact_match, holds_answer

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of a trajectory. `sampled` says who wrote it (None where the method keeps no tokens).

    `tokens` pairs the text of each token with its log-probability, where a tokenizer was given.
    """

    kind: str
    text: str
    sampled: bool | None = None
    token_count: int | None = None
    passages: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[tuple[str, float | None]] = field(default_factory=list)


def verdict(trajectory: Trajectory) -> str:
    """right, wrong or failed."""
    if trajectory.failed:
        return "failed"
    return "right" if exact_match(trajectory.answer, trajectory.gold_answers) else "wrong"


def note(trajectory: Trajectory) -> str:
    """The error of a failed question, or the reward of a rollout with its reason."""
    if trajectory.error is not None:
        return str(trajectory.error)
    return "" if trajectory.reward is None else f"reward {trajectory.reward:g}: {trajectory.reward_reason}"


def blocks(trajectory: Trajectory, decode: Decode | None = None) -> list[Block]:
    """The blocks of a trajectory. An episode's are its segments, token by token with `decode` (ids to text)."""
    if trajectory.dialect is not None:
        return [_segment_block(segment, trajectory, decode) for segment in trajectory.segments]
    return list(_step_blocks(trajectory))


def _segment_block(segment: Segment, trajectory: Trajectory, decode: Decode | None) -> Block:
    sampled = segment.source is Source.MODEL
    log_probs = segment.log_probs or [None] * len(segment.token_ids)
    tokens = []
    if decode is not None:
        pairs = zip(segment.token_ids, log_probs, strict=True)
        tokens = [(decode([token_id]), log_prob) for token_id, log_prob in pairs]
    found = trajectory.calls[segment.call].passages if segment.call is not None else ()
    passages = _passages(found, trajectory.gold_answers)
    return Block(segment.source.value, segment.text, sampled, len(segment.token_ids), passages, tokens)


def _step_blocks(trajectory: Trajectory) -> Iterator[Block]:
    for step in steps(trajectory):
        passages = _passages(step.passages, trajectory.gold_answers) if step.kind is StepKind.RESULT else []
        yield Block(step.kind.value, step.text, passages=passages)


def _passages(passages: Sequence[Passage], gold_answers: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"id": p.id, "contents": p.contents, "score": p.score, "has_answer": holds_answer(p.contents, gold_answers)}
        for p in passages
    ]
