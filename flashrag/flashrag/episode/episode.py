"""The search episode: prompt + [model segment | result segment]*, token-exact, with the provenance of every token.

The ids that the model sampled are never decoded and encoded again: text is decoded only to find the calls and the
answer. Does not cover: how an episode comes about (run.py), reward, prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Protocol

from flashrag.document import Passage
from flashrag.episode.dialect import RESEARCH, Dialect
from flashrag.episode.format_rule import FormatFault, find_answer, find_format_fault
from flashrag.errors import ReSearchError


class Source(StrEnum):
    """Who wrote a segment's tokens."""

    MODEL = "model"
    RESULT = "result"


class EndReason(StrEnum):
    """What ended an episode."""

    EOS = "eos"
    ANSWERED = "answered"
    LENGTH = "length"
    SEARCH_LIMIT = "search_limit"
    SEARCH_FAILED = "search_failed"
    DEADLINE = "deadline"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Generation:
    """What the engine sampled in one call; `log_probs` is None when the engine was not asked for them."""

    token_ids: Sequence[int]
    log_probs: Sequence[float] | None = None
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens with one source. A result segment has no log-probabilities: nobody sampled it.

    `call` is the place in the episode's calls of the one that a result answers; None where it answers none: the text of
    a model, or the notice that no calls are left. A method that works on text has no `token_ids`.
    """

    source: Source
    text: str
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool: its argument, the passages it gave, how long it took, and the error if it failed."""

    query: str
    passages: tuple[Passage, ...] = ()
    latency_s: float = 0.0
    error: str | None = None
    tool: str = "search"


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one episode: `max_response_tokens` counts sampled and spliced tokens together, `max_searches` the
    calls of every tool; `search_timeout_s` is for each of them. None is no deadline.
    """

    max_response_tokens: int
    max_result_tokens: int
    max_searches: int
    search_timeout_s: float | None = None
    episode_timeout_s: float | None = None


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that an episode needs."""

    all_special_ids: list[int]
    all_special_tokens: list[str]
    unk_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(slots=True)
class Episode:
    """A prompt and everything that followed it, in one dialect; `calls` holds the calls of every tool.

    `generate_spans` are the engine's working times, as (start, end) in Unix seconds: comparable between processes.
    """

    prompt_ids: tuple[int, ...]
    segments: list[Segment] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    end_reason: EndReason = EndReason.LENGTH
    generate_spans: list[tuple[float, float]] = field(default_factory=list)
    dialect: Dialect = RESEARCH

    @property
    def generate_s(self) -> float:
        return sum(end - start for start, end in self.generate_spans)

    @property
    def response_ids(self) -> list[int]:
        return [*chain.from_iterable(segment.token_ids for segment in self.segments)]

    @property
    def loss_mask(self) -> list[int]:
        """1 for each token that the model sampled, 0 for each spliced one."""
        masks = ([int(segment.source is Source.MODEL)] * len(segment.token_ids) for segment in self.segments)
        return [*chain.from_iterable(masks)]

    @property
    def log_probs(self) -> list[float]:
        """The engine's log-probabilities, 0.0 for spliced tokens; empty when the engine was not asked for them."""
        if any(segment.source is Source.MODEL and segment.log_probs is None for segment in self.segments):
            return []
        values = (segment.log_probs or (0.0,) * len(segment.token_ids) for segment in self.segments)
        return [*chain.from_iterable(values)]

    @property
    def sampled_texts(self) -> list[str]:
        return [segment.text for segment in self.segments if segment.source is Source.MODEL]

    @property
    def text(self) -> str:
        """The whole response as text, for people to read."""
        return "".join(segment.text for segment in self.segments)

    @property
    def answer(self) -> str:
        """The final answer, "" when the model gave none."""
        return find_answer(self.sampled_texts, self.dialect)

    @property
    def format_fault(self) -> FormatFault | None:
        """The first fault in the dialect's format; None where there is none, or no format rule."""
        ended_by_itself = self.end_reason in (EndReason.EOS, EndReason.ANSWERED)
        return find_format_fault(self.sampled_texts, self.dialect, ended_by_itself=ended_by_itself)


class InvariantViolation(ReSearchError):
    """An episode that is not token-exact: a bug of ours, never of the user or the model."""

    def __init__(self, message: str, episode: Episode):
        super().__init__(message)
        self.episode = episode


class EpisodeCodec:
    """How an episode reads and writes tokens with one tokenizer, in one dialect."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int], dialect: Dialect = RESEARCH):
        self.tokenizer = tokenizer
        self.dialect = dialect
        self.eos_token_ids = frozenset(eos_token_ids)
        # What stands for a word that the tokenizer does not know acts on nothing, and a passage may hold such words.
        self.special_ids = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id} | self.eos_token_ids
        self.special_tokens = tuple(tokenizer.all_special_tokens)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text: a special token's string in it stays text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode_sampled(self, token_ids: Sequence[int]) -> str:
        """The text of a sampled segment, without the end of sequence that may close it."""
        if self.ends_sequence(token_ids):
            token_ids = token_ids[:-1]
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def ends_sequence(self, token_ids: Sequence[int]) -> bool:
        return bool(token_ids) and token_ids[-1] in self.eos_token_ids


def check_invariants(episode: Episode, codec: EpisodeCodec) -> None:
    """Raise `InvariantViolation` unless ids and log-probabilities agree and every splice is harmless as it is decoded.

    The loss mask needs no check: it is made from where the tokens came from.
    """
    violation = _misalignment(episode) or next(
        filter(None, (_splice_fault(s, codec) for s in episode.segments if s.source is Source.RESULT)), None
    )
    if violation:
        raise InvariantViolation(violation, episode)


def _misalignment(episode: Episode) -> str | None:
    for segment in episode.segments:
        if segment.log_probs is not None and len(segment.log_probs) != len(segment.token_ids):
            return f"{len(segment.token_ids)} ids and {len(segment.log_probs)} log-probabilities in {segment.text!r}"
    sources = [segment.source for segment in episode.segments]
    if any(source is not (Source.RESULT if index % 2 else Source.MODEL) for index, source in enumerate(sources)):
        return f"model and result segments do not alternate: {sources}"
    return None


def _splice_fault(segment: Segment, codec: EpisodeCodec) -> str | None:
    special = codec.special_ids.intersection(segment.token_ids)
    if special:
        return f"special tokens {sorted(special)} in the spliced result {segment.text!r}"
    decoded = codec.tokenizer.decode(list(segment.token_ids), skip_special_tokens=False)
    tags = codec.dialect.pattern.findall(decoded)
    return None if tags == list(codec.dialect.result) else f"live tags {tags} in the spliced result {decoded!r}"
