"""What a method made of one question: the answer, how it came about step by step, and what it cost.

Does not cover: whether the answer is right (flashrag.metrics), where it is written (evaluation).
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from flashrag.episode.episode import EndReason, Episode


class StepKind(StrEnum):
    """What happened in one step."""

    THINK = "think"
    GENERATION = "generation"
    QUERY = "query"
    RESULT = "result"
    ANSWER = "answer"


class Passage(NamedTuple):
    """A retrieved passage; `score` is None where the retriever gave none."""

    id: str
    contents: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened: what was written or asked, or (a result) the passages that came back.

    `text` of a result is what the model read in their place, "" where it read the passages themselves.
    """

    kind: StepKind
    text: str
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one question cost. `prompt_tokens` counts a prompt again with each call that sends it."""

    prompt_tokens: int
    completion_tokens: int
    generator_calls: int
    searches: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answered question. `end_reason` is an `EndReason`, or "iterations" where a method's rounds ran out.

    `episode` is there for the methods that run one: its token ids, masks and log-probabilities, as in training.
    """

    prediction: str
    end_reason: str
    steps: tuple[Step, ...]
    usage: Usage
    episode: Episode | None = None

    def as_record(self) -> dict[str, Any]:
        """Everything as JSON's types; an episode's keys are those of training's trajectories."""
        record: dict[str, Any] = {
            "prediction": self.prediction,
            "end_reason": str(self.end_reason),
            "usage": asdict(self.usage),
            "steps": [
                {
                    "kind": step.kind.value,
                    "text": step.text,
                    **({"passages": [p._asdict() for p in step.passages]} if step.kind is StepKind.RESULT else {}),
                }
                for step in self.steps
            ],
        }
        return record | (_episode_record(self.episode) if self.episode else {})


def _episode_record(episode: Episode) -> dict[str, Any]:
    return {
        "answer": episode.answer,
        "ended_by": episode.ended_by.value,
        "format_fault": episode.format_fault and episode.format_fault.name.lower(),
        "searches": [asdict(search) for search in episode.searches],
        "segments": [
            {
                "source": segment.source.value,
                "text": segment.text,
                "token_ids": list(segment.token_ids),
                "log_probs": None if segment.log_probs is None else list(segment.log_probs),
            }
            for segment in episode.segments
        ],
        "prompt_ids": list(episode.prompt_ids),
        "generate_s": episode.generate_s,
    }


ITERATIONS = "iterations"


def end_reason_of(finish_reason: str | None) -> EndReason:
    """Why a request for text ended, in the words of an episode."""
    return EndReason.LENGTH if finish_reason == "length" else EndReason.EOS
