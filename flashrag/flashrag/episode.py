"""The search episode: prompt + [model segment | result segment]*, token-exact, with the provenance of every token.

    generate(token_ids, max_tokens) -> Generation     the engine, stopping at `</search>` (vLLM inside verl, or HTTP)
    search(query) -> ToolResult                        the retrieval client

Training and evaluation both run this one function. The ids that the model sampled are never decoded and encoded
again: text is decoded only to find the query and the answer. Does not cover: reward, prompts, transport.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from flashrag.deadline import Clock, DeadlinePassed, within
from flashrag.dialect import RESEARCH, Dialect
from flashrag.errors import ReSearchError, SearchError
from flashrag.protocol import FormatFault, extract_answer, find_format_fault, parse_query
from flashrag.result import SEARCH_LIMIT_REACHED, SplicedResult, fit_notice, fit_result
from flashrag.tools.tool import ToolResult


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
    """A run of tokens with one source. A result segment has no log-probabilities: nobody sampled it."""

    source: Source
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """One call of a tool: what was asked, what came back, how long it took, why it failed.

    `scores` has a value for each document, or none where the tool does not rank.
    """

    query: str
    document_ids: tuple[str, ...]
    latency_s: float
    error: str | None = None
    tool: str = "search"
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one episode. `max_response_tokens` counts sampled and spliced tokens together; None is no deadline."""

    max_response_tokens: int
    max_result_tokens: int
    max_searches: int
    search_timeout_s: float | None = None
    episode_timeout_s: float | None = None


Generate = Callable[[list[int], int], Awaitable[Generation]]
Search = Callable[[str], Awaitable[ToolResult]]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that an episode needs."""

    all_special_ids: list[int]
    all_special_tokens: list[str]
    unk_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(slots=True)
class Episode:
    """A prompt and everything that followed it."""

    prompt_ids: tuple[int, ...]
    segments: list[Segment] = field(default_factory=list)
    searches: list[SearchRecord] = field(default_factory=list)
    ended_by: EndReason = EndReason.LENGTH
    generate_s: float = 0.0

    @property
    def response_ids(self) -> list[int]:
        return [token_id for segment in self.segments for token_id in segment.token_ids]

    @property
    def loss_mask(self) -> list[int]:
        """1 for each token that the model sampled, 0 for each spliced one."""
        return [int(segment.source is Source.MODEL) for segment in self.segments for _ in segment.token_ids]

    @property
    def log_probs(self) -> list[float]:
        """The engine's log-probabilities, 0.0 for spliced tokens; empty when the engine was not asked for them."""
        if any(segment.source is Source.MODEL and segment.log_probs is None for segment in self.segments):
            return []
        return [value for segment in self.segments for value in (segment.log_probs or (0.0,) * len(segment.token_ids))]

    @property
    def sampled_texts(self) -> list[str]:
        return [segment.text for segment in self.segments if segment.source is Source.MODEL]

    @property
    def text(self) -> str:
        """The whole response as text, for people to read."""
        return "".join(segment.text for segment in self.segments)

    @property
    def answer(self) -> str:
        """The final answer in the trained dialect, "" when the model gave none."""
        texts = self.sampled_texts
        return extract_answer(texts[-1]) if texts else ""

    @property
    def format_fault(self) -> FormatFault | None:
        return find_format_fault(self.sampled_texts, ended_by_itself=self.ended_by is EndReason.EOS)


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


async def run_episode(
    prompt_ids: Sequence[int],
    generate: Generate,
    search: Search,
    codec: EpisodeCodec,
    limits: Limits,
    *,
    clock: Clock = time.monotonic,
) -> Episode:
    """Run one episode to its end.

    `generate` gets prompt and response ids so far and the number of tokens that it may sample; it stops after one of
    the dialect's stops, at the end of sequence, or at that number. A `SearchError`, or a search past its deadline, ends
    the episode as SEARCH_FAILED: nothing is invented in the result's place. An episode past its own deadline ends as
    DEADLINE: what runs then is cancelled and leaves no token. Deadlines and latencies are measured on `clock`. Raises
    `InvariantViolation` when the outcome is not token-exact.
    """
    run = _Run(Episode(tuple(prompt_ids)), generate, search, codec, limits, clock)
    try:
        run.episode.ended_by = await run.to_the_end()
    except SearchError:
        run.episode.ended_by = EndReason.SEARCH_FAILED
    except DeadlinePassed:
        run.episode.ended_by = EndReason.DEADLINE
    check_invariants(run.episode, codec)
    return run.episode


class _Run:
    """One episode under way."""

    def __init__(
        self, episode: Episode, generate: Generate, search: Search, codec: EpisodeCodec, limits: Limits, clock: Clock
    ):
        self.episode, self.generate, self.search = episode, generate, search
        self.codec, self.limits, self.clock = codec, limits, clock
        self.deadline = None if limits.episode_timeout_s is None else clock() + limits.episode_timeout_s
        self.told_limit = False

    async def to_the_end(self) -> EndReason:
        while (left := self._tokens_left()) > 0:
            ended_by = await self._sample(left)
            if ended_by is not None:
                return ended_by
            if (left := self._tokens_left()) <= 0:
                break  # no token is left for a result: nothing to search for
            if self.told_limit:
                return EndReason.SEARCH_LIMIT
            spliced = await self._answer_search(min(self.limits.max_result_tokens, left))
            if spliced is None:
                break
            self.episode.segments.append(Segment(Source.RESULT, spliced.text, tuple(spliced.token_ids)))
        return EndReason.LENGTH

    def _tokens_left(self) -> int:
        used = sum(len(segment.token_ids) for segment in self.episode.segments)
        return self.limits.max_response_tokens - used

    async def _sample(self, max_tokens: int) -> EndReason | None:
        """Add a model segment; what ends the episode after it, None when it closed a search."""
        episode, codec = self.episode, self.codec
        started = time.perf_counter()
        try:
            work = self.generate([*episode.prompt_ids, *episode.response_ids], max_tokens)
            generation = await within(work, self.deadline, self.clock)
        finally:
            episode.generate_s += time.perf_counter() - started
        log_probs = None if generation.log_probs is None else tuple(generation.log_probs)
        token_ids = tuple(generation.token_ids)
        text = codec.decode_sampled(token_ids)
        episode.segments.append(Segment(Source.MODEL, text, token_ids, log_probs))
        if generation.aborted:
            return EndReason.ABORTED
        if codec.ends_sequence(token_ids):
            return EndReason.EOS
        # Engines report a length stop and a stop string alike, so the text decides.
        if parse_query(text, codec.dialect) is not None:
            return None
        answer = codec.dialect.answer
        answered = codec.dialect.stops_at_answer and answer is not None and answer.close in text
        return EndReason.ANSWERED if answered else EndReason.LENGTH

    async def _answer_search(self, max_tokens: int) -> SplicedResult | None:
        """The result of the search that the last segment closed; None when not even its tags fit."""
        episode, codec = self.episode, self.codec
        if len(episode.searches) >= self.limits.max_searches:
            self.told_limit = True
            return fit_notice(SEARCH_LIMIT_REACHED, codec.encode_text, max_tokens, codec.dialect)
        query = parse_query(episode.segments[-1].text, codec.dialect)
        assert query is not None, "called only after a closed search"
        if query.fault is not None:
            episode.searches.append(SearchRecord(query.text, (), 0.0, error=query.fault.name.lower()))
            notice = query.fault.told_in(codec.dialect)
            return fit_notice(notice, codec.encode_text, max_tokens, codec.dialect)
        result = await self._search(query.text)
        return fit_result(result.documents, codec.encode_text, max_tokens, codec.special_tokens, codec.dialect)

    async def _search(self, query: str) -> ToolResult:
        """Ask, and record what came of it. Raises `SearchError` and `DeadlinePassed`."""
        started = self.clock()
        try:
            result = await self._search_in_time(query, started)
        except (SearchError, DeadlinePassed) as error:
            self.episode.searches.append(SearchRecord(query, (), self.clock() - started, error=str(error)))
            raise
        ids = tuple(document.id for document in result.documents)
        record = SearchRecord(query, ids, self.clock() - started, scores=tuple(result.scores))
        self.episode.searches.append(record)
        return result

    async def _search_in_time(self, query: str, started: float) -> ToolResult:
        timeout_s, episode_s = self.limits.search_timeout_s, self.limits.episode_timeout_s
        deadlines = [self.deadline] if self.deadline is not None else []
        deadlines += [started + timeout_s] if timeout_s is not None else []
        try:
            return await within(self.search(query), min(deadlines, default=None), self.clock)
        except DeadlinePassed:
            if self.deadline is not None and self.clock() >= self.deadline:
                raise DeadlinePassed(f"the episode passed its deadline of {episode_s:g} s while it searched") from None
            raise SearchError(f"no answer within the deadline of {timeout_s:g} s for a search") from None


def check_invariants(episode: Episode, codec: EpisodeCodec) -> None:
    """Raise `InvariantViolation` unless ids, mask and log-probabilities agree and every splice is harmless."""
    violation = _misalignment(episode) or next(
        filter(None, (_splice_fault(s, codec) for s in episode.segments if s.source is Source.RESULT)), None
    )
    if violation:
        raise InvariantViolation(violation, episode)


def _misalignment(episode: Episode) -> str | None:
    ids, mask, log_probs = len(episode.response_ids), len(episode.loss_mask), len(episode.log_probs)
    if mask != ids or log_probs not in (0, ids):
        return f"{ids} response ids, {mask} mask values, {log_probs} log-probabilities"
    sources = [segment.source for segment in episode.segments]
    if any(source is not (Source.RESULT if index % 2 else Source.MODEL) for index, source in enumerate(sources)):
        return f"model and result segments do not alternate: {sources}"
    return None


def _splice_fault(segment: Segment, codec: EpisodeCodec) -> str | None:
    if list(segment.token_ids) != codec.encode_text(segment.text):
        return f"spliced ids are not the encoding of the rendered result {segment.text!r}"
    special = codec.special_ids.intersection(segment.token_ids)
    if special:
        return f"special tokens {sorted(special)} in the spliced result {segment.text!r}"
    decoded = codec.tokenizer.decode(list(segment.token_ids), skip_special_tokens=False)
    tags = codec.dialect.pattern.findall(decoded)
    return None if tags == list(codec.dialect.result) else f"live tags {tags} in the spliced result {decoded!r}"
