"""The trajectory: the record of one question, in the one format that trainer, evaluation, report and demo share.

A trajectory is one JSON object on one line; docs/trajectories.md explains each field. The scores are its only
judgement; readers derive the rest, e.g. `steps`.
Does not cover: the files that hold trajectories (flashrag.system.json_lines).
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

import orjson
from pydantic import TypeAdapter, ValidationError

from flashrag.document import Passage
from flashrag.episode.dialect import DIALECTS, PYTHON, RESEARCH, Dialect, Tag
from flashrag.episode.episode import EndReason, Episode, Segment, Source, ToolCall
from flashrag.errors import UserError

SCHEMA_VERSION = 3
FAILED = "failed"  # the end reason of a question that has an error
ITERATIONS = "iterations"  # the end reason of a method that used up its rounds


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of one question. `prompt_tokens` counts the whole prompt of every request.

    `completion_tokens` were sampled by the model, `result_tokens` were spliced in.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    result_tokens: int = 0
    generator_calls: int = 0
    searches: int = 0
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """The error because of which a question has no answer."""

    type: str
    message: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The record of one question. Fields for which a program has no value keep their defaults.

    `end_reason` is an `EndReason`, "iterations", "drawn" (the random baseline) or "failed". `dialect` names the dialect
    of an episode. A method without episodes has no `dialect`, no `prompt_ids`, and no token ids in its segments.
    `format_valid` is None if the dialect has no format rule.
    """

    question_id: str
    question: str
    gold_answers: tuple[str, ...]
    answer: str = ""
    end_reason: str = EndReason.EOS
    dialect: str | None = None
    format_valid: bool | None = None
    format_fault: str | None = None
    segments: tuple[Segment, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    usage: Usage = field(default_factory=Usage)
    generate_spans: tuple[tuple[float, float], ...] = ()
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    data_source: str = ""
    reward: float | None = None
    reward_reason: str = ""
    # Training
    split: str | None = None
    step: int | None = None
    weights_steps: tuple[int | None, int | None] | None = None
    group_id: str | None = None
    session: int | None = None
    # Evaluation
    attempt: int = 1
    error: Failure | None = None  # in training: why there is no reward
    version: Literal[2, 3] = SCHEMA_VERSION  # each record of version 2 means the same in version 3
    written_at: float = field(default_factory=time.time)

    @classmethod
    def of_episode(cls, episode: Episode, *, usage: Usage | None = None, **fields: Any) -> Self:
        """The trajectory of an episode; `fields` are the fields that cannot be read from the episode."""
        fault = episode.format_fault
        return cls(
            answer=episode.answer,
            end_reason=episode.end_reason,
            dialect=episode.dialect.name,
            format_valid=fault is None if episode.dialect.answer else None,
            format_fault=fault and fault.name.lower(),
            segments=tuple(episode.segments),
            calls=tuple(episode.calls),
            prompt_ids=episode.prompt_ids,
            generate_spans=tuple(episode.generate_spans),
            usage=usage or episode_usage(episode),
            **fields,
        )

    @property
    def failed(self) -> bool:
        return self.error is not None

    def to_json(self) -> bytes:
        """The trajectory as one line of JSON, without a line break. A lone surrogate is written as "?"."""
        compact = replace(self, segments=tuple(map(_in_short, self.segments)))
        try:
            return orjson.dumps(compact, option=orjson.OPT_SERIALIZE_NUMPY)
        except orjson.JSONEncodeError:
            return json.dumps(asdict(self), ensure_ascii=False).encode("utf-8", errors="replace")

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """Read one line; raises `UserError` if it is no trajectory of this version or the one before."""
        try:
            return _adapter(cls).validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"not a trajectory of version {SCHEMA_VERSION} or {SCHEMA_VERSION - 1} ({place}: {first['msg']}); "
                "read a file of another version with the release that wrote it"
            ) from error


@lru_cache
def _adapter(shape: type) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _in_short(segment: Segment) -> Segment:
    """The segment with float32 log-probabilities: engines compute no more digits, so nothing is lost."""
    if segment.log_probs is None:
        return segment
    import numpy as np  # imported here: an installation that handles no log-probabilities need not have it

    short: Any = np.asarray(segment.log_probs, np.float32)
    return replace(segment, log_probs=short)


def episode_usage(episode: Episode) -> Usage:
    """The cost of an episode; its latency is the time that the engine and the calls took."""
    prompt_tokens, before = 0, len(episode.prompt_ids)
    requests = 0
    for segment in episode.segments:
        if segment.source is Source.MODEL:
            prompt_tokens, requests = prompt_tokens + before, requests + 1
        before += len(segment.token_ids)
    searches = sum(call.tool == "search" and call.error is None for call in episode.calls)
    latency_s = episode.generate_s + sum(call.latency_s for call in episode.calls)
    sampled, spliced = episode.count_tokens(sampled=True), episode.count_tokens(sampled=False)
    return Usage(prompt_tokens, sampled, spliced, requests, searches, latency_s)


class StepKind(StrEnum):
    """The kinds of steps that a person reads."""

    THINK = "think"
    GENERATION = "generation"
    QUERY = "query"
    FORCED = "forced"  # the query of a search that the model did not ask for
    RESULT = "result"
    ANSWER = "answer"


class Step(NamedTuple):
    """One step of a trajectory. The `text` of a result is the text that the model read, "" if it read the passages."""

    kind: StepKind
    text: str
    passages: tuple[Passage, ...] = ()


def steps(trajectory: Trajectory) -> Iterator[Step]:
    """The trajectory for a human reader, in order: blocks that the model wrote, calls, results, the answer."""
    dialect = read_dialect(trajectory.dialect)
    for segment in trajectory.segments:
        call = trajectory.calls[segment.call] if segment.call is not None else None
        yield from segment_steps(segment, call, dialect)
    yield Step(StepKind.ANSWER, trajectory.answer)


def read_dialect(name: str | None) -> Dialect | None:
    """The dialect of a trajectory, with every tool that a model may have called."""
    return DIALECTS[name].with_calls(PYTHON) if name else None


def segment_steps(segment: Segment, call: ToolCall | None, dialect: Dialect | None) -> Iterator[Step]:
    """The steps in one segment; `call` is the one that a result answers, `dialect` that of an episode."""
    if segment.source is Source.MODEL:
        yield from _written_steps(segment.text, dialect) if dialect else [Step(StepKind.GENERATION, segment.text)]
        return
    if segment.source is Source.FORCED:
        yield from (step._replace(kind=StepKind.FORCED) for step in _written_steps(segment.text, dialect or RESEARCH))
        return
    call = call or ToolCall("")
    body = segment.text.strip()
    if dialect is None and call.query:  # the model's text does not contain the query
        yield Step(StepKind.QUERY, call.query)
    elif dialect is not None:
        body = body.removeprefix(dialect.result.open).removesuffix(dialect.result.close).strip()
    yield Step(StepKind.RESULT, body, call.passages if call.tool == "search" else ())


def block_kinds(dialect: Dialect) -> dict[Tag, StepKind]:
    """The blocks that a model writes as steps of their own."""
    return {dialect.think: StepKind.THINK, **dict.fromkeys(dialect.calls, StepKind.QUERY)}


def _written_steps(text: str, dialect: Dialect) -> Iterator[Step]:
    """The blocks of one sampled text. An unclosed block ends where the next one begins. Other text is GENERATION."""
    kinds = {tag.open: kind for tag, kind in block_kinds(dialect).items()}
    opened = "|".join(map(re.escape, kinds))
    closed = "|".join(re.escape(tag.close) for tag in block_kinds(dialect))
    position = 0
    for block in re.finditer(f"({opened})(.*?)(?:{closed}|(?={opened})|$)", text, re.DOTALL):
        if loose := text[position : block.start()].strip():
            yield Step(StepKind.GENERATION, loose)
        yield Step(kinds[block[1]], block[2].strip())
        position = block.end()
    if loose := text[position:].strip():
        yield Step(StepKind.GENERATION, loose)
