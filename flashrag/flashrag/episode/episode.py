"""The search episode: prompt + [model segment | result segment]*, token-exact, with the source of every token.

A control may put a search that the model did not sample before the first result, in place of a model segment.

Sampled ids are never decoded and encoded again: text is decoded only to find the calls and the answer.
Does not cover: running an episode (run.py), reward, prompts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any, Protocol

from flashrag.document import Passage
from flashrag.episode.dialect import RESEARCH, Dialect
from flashrag.episode.foreign import control_tokens
from flashrag.episode.format_rule import FormatFault, find_answer, find_format_fault
from flashrag.errors import ReSearchError


class Source(StrEnum):
    """Who wrote a segment's tokens."""

    MODEL = "model"
    RESULT = "result"
    FORCED = "forced"  # by us, in place of the model: the search that an episode is made to begin with


class EndReason(StrEnum):
    """The reason why an episode ended."""

    EOS = "eos"
    ANSWERED = "answered"
    LENGTH = "length"
    SEARCH_LIMIT = "search_limit"
    SEARCH_FAILED = "search_failed"
    DEADLINE = "deadline"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Generation:
    """The tokens that the engine sampled for one request; `log_probs` is None if they were not requested."""

    token_ids: Sequence[int]
    log_probs: Sequence[float] | None = None
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens from one source. Only a model segment has log-probabilities, because no other was sampled.

    `call` is the index, in the episode's calls, of the call that a result answers. It is None for other segments and
    for the notice that no calls are left. `token_ids` is empty for methods that work on text.
    """

    source: Source
    text: str
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool: its argument, the passages it returned, its latency, and the error if it failed."""

    query: str
    passages: tuple[Passage, ...] = ()
    latency_s: float = 0.0
    error: str | None = None
    tool: str = "search"


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one episode. `max_response_tokens` limits sampled and spliced tokens together, `max_searches` the
    calls of all tools together, `search_timeout_s` the time of each call. None means no deadline. With `tell_budget`
    each result ends with the number of calls that are left.
    """

    max_response_tokens: int
    max_result_tokens: int
    max_searches: int
    search_timeout_s: float | None = None
    episode_timeout_s: float | None = None
    tell_budget: bool = False


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that an episode needs."""

    all_special_ids: list[int]
    all_special_tokens: list[str]
    added_tokens_decoder: dict[int, Any]
    unk_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(slots=True)
class Episode:
    """A prompt and its response, in one dialect; `calls` holds the calls of every tool.

    `generate_spans` are the (start, end) times of the requests to the engine, in Unix seconds so that processes agree.
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
        """1 for each sampled token, 0 for each spliced token."""
        return loss_mask(self.segments)

    @property
    def log_probs(self) -> list[float]:
        """The engine's log-probabilities, 0.0 for spliced tokens; empty if they were not requested."""
        if any(segment.source is Source.MODEL and segment.log_probs is None for segment in self.segments):
            return []
        values = (segment.log_probs or (0.0,) * len(segment.token_ids) for segment in self.segments)
        return [*chain.from_iterable(values)]

    def count_tokens(self, *, sampled: bool) -> int:
        """The number of response tokens that the model sampled, or else that were spliced in."""
        return self.loss_mask.count(int(sampled))

    @property
    def sampled_texts(self) -> list[str]:
        return [segment.text for segment in self.segments if segment.source is Source.MODEL]

    @property
    def text(self) -> str:
        """The whole response as text, for people to read."""
        return "".join(segment.text for segment in self.segments)

    @property
    def answer(self) -> str:
        """The final answer, "" if the model gave none."""
        return find_answer(self.sampled_texts, self.dialect)

    @property
    def format_fault(self) -> FormatFault | None:
        """The first fault in the format; None if the format is valid or the dialect has no format rule."""
        ended_by_itself = self.end_reason in (EndReason.EOS, EndReason.ANSWERED)
        return find_format_fault(self.sampled_texts, self.dialect, ended_by_itself=ended_by_itself)


def loss_mask(segments: Iterable[Segment]) -> list[int]:
    """1 for each token that a model sampled, 0 for each other token."""
    return [*chain.from_iterable([int(each.source is Source.MODEL)] * len(each.token_ids) for each in segments)]


class InvariantViolation(ReSearchError):
    """An episode is not token-exact. This is always a bug of ours, never the user's or the model's fault."""

    def __init__(self, message: str, episode: Episode):
        super().__init__(message)
        self.episode = episode


class EpisodeCodec:
    """Encodes and decodes the texts of an episode with one tokenizer, in one dialect."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int], dialect: Dialect = RESEARCH):
        self.tokenizer = tokenizer
        self.dialect = dialect
        self.eos_token_ids = frozenset(eos_token_ids)
        tokens = control_tokens(tokenizer)
        self.control_strings = tuple(tokens.values())
        # The tags around a result may be added tokens; `check_invariants` counts them. The id for unknown words has no
        # effect on a model, and a passage may hold such words: it counts as text.
        foreign_ids = {token_id for token_id, string in tokens.items() if string not in dialect.tags}
        self.control_ids = frozenset(foreign_ids - {tokenizer.unk_token_id}) | self.eos_token_ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; the string of a token that is flagged special is encoded as text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode_sampled(self, token_ids: Sequence[int]) -> str:
        """The text of a sampled segment, without the end-of-sequence token."""
        if self.ends_sequence(token_ids):
            token_ids = token_ids[:-1]
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def ends_sequence(self, token_ids: Sequence[int]) -> bool:
        return bool(token_ids) and token_ids[-1] in self.eos_token_ids


def check_invariants(episode: Episode, codec: EpisodeCodec) -> None:
    """Raise `InvariantViolation` unless ids match log-probabilities and every spliced text decodes to harmless text.

    The loss mask needs no check: it follows from the source of each segment.
    """
    violation = _misalignment(episode) or next(
        filter(None, (_splice_fault(s, codec) for s in episode.segments if s.source is not Source.MODEL)), None
    )
    if violation:
        raise InvariantViolation(violation, episode)


def _misalignment(episode: Episode) -> str | None:
    for segment in episode.segments:
        if segment.log_probs is not None and len(segment.log_probs) != len(segment.token_ids):
            return f"{len(segment.token_ids)} ids and {len(segment.log_probs)} log-probabilities in {segment.text!r}"
    sources = [segment.source for segment in episode.segments]
    turns = [Source.MODEL, *sources[1:]] if sources[:1] == [Source.FORCED] else sources
    if any(source is not (Source.RESULT if index % 2 else Source.MODEL) for index, source in enumerate(turns)):
        return f"model and result segments do not alternate: {sources}"
    return None


def _splice_fault(segment: Segment, codec: EpisodeCodec) -> str | None:
    forced = segment.source is Source.FORCED
    what, tag = ("search", codec.dialect.search) if forced else ("result", codec.dialect.result)
    if live := codec.control_ids.intersection(segment.token_ids):
        return f"control tokens {sorted(live)} in the spliced {what} {segment.text!r}"
    decoded = codec.tokenizer.decode(list(segment.token_ids), skip_special_tokens=False)
    tags = codec.dialect.pattern.findall(decoded)
    return None if tags == list(tag) else f"live tags {tags} in the spliced {what} {decoded!r}"
