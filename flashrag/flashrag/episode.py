"""The search episode: prompt + [model segment | result segment]*, token-exact, with the provenance of every token.

    generate(token_ids, max_tokens) -> Generation     the engine, stopping at `</search>` (vLLM inside verl, or HTTP)
    search(query) -> documents                         the retrieval client

Training and evaluation both run this one function. The ids that the model sampled are never decoded and encoded
again: text is decoded only to find the query and the answer. Does not cover: reward, prompts, transport.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from flashrag.dialect import RESEARCH, Dialect
from flashrag.document import Document
from flashrag.errors import ReSearchError, SearchError
from flashrag.protocol import FormatFault, extract_answer, find_format_fault, parse_query
from flashrag.result import SEARCH_LIMIT_REACHED, SplicedResult, fit_notice, fit_result


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
    """One search of an episode: what was asked, what came back, how long it took, why it failed."""

    query: str
    document_ids: tuple[str, ...]
    latency_s: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one episode. `max_response_tokens` counts sampled and spliced tokens together."""

    max_response_tokens: int
    max_result_tokens: int
    max_searches: int


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that an episode needs."""

    all_special_ids: list[int]
    all_special_tokens: list[str]

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
        self.special_ids = frozenset(tokenizer.all_special_ids) | self.eos_token_ids
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
    generate: Callable[[list[int], int], Awaitable[Generation]],
    search: Callable[[str], Awaitable[Sequence[Document]]],
    codec: EpisodeCodec,
    limits: Limits,
) -> Episode:
    """Run one episode to its end.

    `generate` gets prompt and response ids so far and the number of tokens that it may sample; it stops after one of
    the dialect's stops, at the end of sequence, or at that number. A `SearchError` ends the episode as SEARCH_FAILED:
    nothing is invented in the result's place. Raises `InvariantViolation` when the outcome is not token-exact.
    """
    episode = Episode(tuple(prompt_ids))
    used_tokens = 0
    while (left := limits.max_response_tokens - used_tokens) > 0:
        started = time.perf_counter()
        generation = await generate([*prompt_ids, *episode.response_ids], left)
        episode.generate_s += time.perf_counter() - started
        segment = _model_segment(generation, codec)
        episode.segments.append(segment)
        used_tokens += len(segment.token_ids)
        ended_by = _end_after_sampling(generation, segment, codec)
        if ended_by is not None:
            episode.ended_by = ended_by
            break
        if used_tokens >= limits.max_response_tokens:
            break  # no token is left for a result: nothing to search for
        budget = min(limits.max_result_tokens, limits.max_response_tokens - used_tokens)
        try:
            spliced = await _answer_search(episode, segment.text, search, codec, limits, budget)
        except SearchError:
            episode.ended_by = EndReason.SEARCH_FAILED
            break
        if spliced is None:
            break
        episode.segments.append(Segment(Source.RESULT, spliced.text, tuple(spliced.token_ids)))
        used_tokens += len(spliced.token_ids)
    check_invariants(episode, codec)
    return episode


def _model_segment(generation: Generation, codec: EpisodeCodec) -> Segment:
    log_probs = None if generation.log_probs is None else tuple(generation.log_probs)
    token_ids = tuple(generation.token_ids)
    return Segment(Source.MODEL, codec.decode_sampled(token_ids), token_ids, log_probs)


def _end_after_sampling(generation: Generation, segment: Segment, codec: EpisodeCodec) -> EndReason | None:
    """What ends the episode after this segment; None when the segment closed a search."""
    if generation.aborted:
        return EndReason.ABORTED
    if codec.ends_sequence(segment.token_ids):
        return EndReason.EOS
    # Engines report a length stop and a stop string alike, so the text decides.
    if parse_query(segment.text, codec.dialect) is not None:
        return None
    answer = codec.dialect.answer
    answered = codec.dialect.stops_at_answer and answer is not None and answer.close in segment.text
    return EndReason.ANSWERED if answered else EndReason.LENGTH


async def _answer_search(
    episode: Episode,
    sampled_text: str,
    search: Callable[[str], Awaitable[Sequence[Document]]],
    codec: EpisodeCodec,
    limits: Limits,
    budget_tokens: int,
) -> SplicedResult | None:
    """The result of the search that the segment closed; None ends the episode with the reason left in it."""
    if len(episode.searches) >= limits.max_searches:
        told_before = any(SEARCH_LIMIT_REACHED in s.text for s in episode.segments if s.source is Source.RESULT)
        if told_before:
            episode.ended_by = EndReason.SEARCH_LIMIT
            return None
        return fit_notice(SEARCH_LIMIT_REACHED, codec.encode_text, budget_tokens, codec.dialect)
    query = parse_query(sampled_text, codec.dialect)
    assert query is not None, "called only after a closed search"
    if query.fault is not None:
        episode.searches.append(SearchRecord(query.text, (), 0.0, error=query.fault.name.lower()))
        notice = query.fault.told_in(codec.dialect)
        return fit_notice(notice, codec.encode_text, budget_tokens, codec.dialect)
    started = time.perf_counter()
    try:
        documents = await search(query.text)
    except SearchError as error:
        episode.searches.append(SearchRecord(query.text, (), time.perf_counter() - started, error=str(error)))
        raise
    ids = tuple(document.id for document in documents)
    episode.searches.append(SearchRecord(query.text, ids, time.perf_counter() - started))
    return fit_result(documents, codec.encode_text, budget_tokens, codec.special_tokens, codec.dialect)


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
