"""Runs one episode from its prompt to its end: an engine samples, and tools answer its calls.

    generate(token_ids, max_tokens) -> Generation     the engine, stopping at `</search>` (vLLM inside verl, or HTTP)
    search(query) -> ToolResult                        the retrieval client; other tools likewise

Training and evaluation both use this one function. episode.py defines the episode and its invariants.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flashrag.episode.episode import (
    EndReason,
    Episode,
    EpisodeCodec,
    Generation,
    Limits,
    Segment,
    Source,
    ToolCall,
    check_invariants,
)
from flashrag.episode.foreign import neutralize
from flashrag.episode.result import SplicedResult, fit_notice, fit_result
from flashrag.episode.tool import MAX_QUERY_CHARS, Ask, Call, Tool, ToolResult, calls_left, find_call, search_tool
from flashrag.episode.watch import Watcher
from flashrag.errors import ToolError

T = TypeVar("T")
Clock = Callable[[], float]
Generate = Callable[[list[int], int], Awaitable[Generation]]

# The shortest wait between two looks at the clock, which may stand still. A deadline is overshot by at most this time.
MIN_WAIT_S = 0.01


async def run_episode(
    prompt_ids: Sequence[int],
    generate: Generate,
    search: Ask,
    codec: EpisodeCodec,
    limits: Limits,
    *,
    tools: Sequence[Tool] = (),
    clock: Clock = time.monotonic,
    watcher: Watcher | None = None,
    forced_query: str | None = None,
) -> Episode:
    """Run one episode to its end; `tools` are the tools besides search, in the order of the dialect's `more_calls`.

    `generate` gets the prompt and response ids so far, and the number of tokens that it may sample. It stops after one
    of the dialect's stops, at the end of sequence, or at that number. A `ToolError`, or a call past its deadline, ends
    the episode as SEARCH_FAILED, with no text in place of the result. An episode past its own deadline ends as
    DEADLINE: the running request or call is cancelled and adds no tokens. `clock` measures deadlines and latencies.
    `watcher` sees each segment when it is complete. A `forced_query` is searched for before the model samples: the
    search is spliced in as its result is, and counts in all budgets as if the model had asked for it. Raises
    `InvariantViolation` if the episode is not token-exact.
    """
    callable_tools = (search_tool(codec.dialect, search), *tools)
    assert tuple(tool.tag for tool in callable_tools) == codec.dialect.calls, "the tools must match the dialect's calls"
    episode = Episode(tuple(prompt_ids), dialect=codec.dialect)
    deadline = None if limits.episode_timeout_s is None else clock() + limits.episode_timeout_s
    run = _Run(episode, generate, callable_tools, codec, limits, clock, deadline, watcher, forced_query)
    try:
        episode.end_reason = await run.to_the_end()
    except ToolError:
        episode.end_reason = EndReason.SEARCH_FAILED
    except DeadlinePassed:
        episode.end_reason = EndReason.DEADLINE
    check_invariants(episode, codec)
    return episode


@dataclass(slots=True)
class _Run:
    """The state of one running episode."""

    episode: Episode
    generate: Generate
    tools: Sequence[Tool]
    codec: EpisodeCodec
    limits: Limits
    clock: Clock
    deadline: float | None
    watcher: Watcher | None
    forced_query: str | None
    limit_announced: bool = False

    async def to_the_end(self) -> EndReason:
        while (left := self._tokens_left()) > 0:
            is_forced = self.forced_query is not None and not self.episode.segments
            outcome = self._force_search(left) if is_forced else await self._sample(left)
            if isinstance(outcome, EndReason):
                return outcome
            if (left := self._tokens_left()) <= 0:
                break  # no token is left for a result, so the tool is not called
            if self.limit_announced:
                return EndReason.SEARCH_LIMIT
            spliced = await self._answer(outcome, min(self.limits.max_result_tokens, left))
            if spliced is None:
                break
            call_index = None if self.limit_announced else len(self.episode.calls) - 1
            self._add(Segment(Source.RESULT, spliced.text, tuple(spliced.token_ids), call=call_index))
        return EndReason.LENGTH

    def _add(self, segment: Segment) -> None:
        self.episode.segments.append(segment)
        if self.watcher is not None:
            self.watcher.ends(segment, None if segment.call is None else self.episode.calls[segment.call])

    def _tokens_left(self) -> int:
        used = sum(len(segment.token_ids) for segment in self.episode.segments)
        return self.limits.max_response_tokens - used

    async def _sample(self, max_tokens: int) -> Call | EndReason:
        """Add a model segment; return the call that it closed, or the reason why the episode ends after it."""
        episode, codec = self.episode, self.codec
        started = time.time()
        try:
            work = self.generate([*episode.prompt_ids, *episode.response_ids], max_tokens)
            generation = await within(work, self.deadline, self.clock)
        finally:
            episode.generate_spans.append((started, time.time()))
        log_probs = None if generation.log_probs is None else tuple(generation.log_probs)
        token_ids = tuple(generation.token_ids)
        text = codec.decode_sampled(token_ids)
        self._add(Segment(Source.MODEL, text, token_ids, log_probs))
        if generation.aborted:
            return EndReason.ABORTED
        if codec.ends_sequence(token_ids):
            return EndReason.EOS
        # Engines do not tell a length stop from a stop string, so the text decides.
        answer = codec.dialect.answer if codec.dialect.stops_at_answer else None
        before_answer, answered, _ = text.partition(answer.close) if answer else (text, "", "")
        call = find_call(before_answer, self.tools)
        return call or (EndReason.ANSWERED if answered else EndReason.LENGTH)

    def _force_search(self, max_tokens: int) -> Call | EndReason:
        """Add a search that the model did not sample; return it, or LENGTH if it does not fit."""
        codec, prompt_ids = self.codec, list(self.episode.prompt_ids)
        assert self.forced_query is not None, "a search is forced"
        query = neutralize(self.forced_query, codec.control_strings, codec.dialect).strip()
        # A base model's prompt ends with a word; a chat template's with a line break or a control token.
        end = codec.tokenizer.decode(prompt_ids, skip_special_tokens=False)[-1:]
        is_parted = prompt_ids[-1] in codec.control_ids or end.isspace()
        text = f"{'' if is_parted else ' '}{codec.dialect.render_search(query[:MAX_QUERY_CHARS])}"
        token_ids = tuple(codec.encode_text(text))
        if len(token_ids) > max_tokens:
            return EndReason.LENGTH
        self._add(Segment(Source.FORCED, text, token_ids))
        call = find_call(text, self.tools)
        assert call is not None, "the search is closed"
        return call

    async def _answer(self, call: Call, max_tokens: int) -> SplicedResult | None:
        """The result of the call that the last segment closed; None if not even its tags fit."""
        episode, codec = self.episode, self.codec
        if len(episode.calls) >= self.limits.max_searches:
            self.limit_announced = True
            return fit_notice(call.tool.limit_reached, codec.encode_text, max_tokens, codec.dialect)
        if call.fault is not None:
            fault = call.fault.name.lower()
            episode.calls.append(ToolCall(call.argument, error=fault, tool=call.tool.name))
            message = call.fault.message_for(call.tool)
            return fit_notice(message, codec.encode_text, max_tokens, codec.dialect, self._note())
        shown = (await self._ask(call)).shown
        return fit_result(shown, codec.encode_text, max_tokens, codec.control_strings, codec.dialect, self._note())

    def _note(self) -> str:
        """The end of the result of the last call, "" if the model is not told its budget."""
        left = self.limits.max_searches - len(self.episode.calls)
        return calls_left(self.codec.dialect, left) if self.limits.tell_budget else ""

    async def _ask(self, call: Call) -> ToolResult:
        """Call the tool and record the call. Raises `ToolError` and `DeadlinePassed`."""
        started, query, tool = self.clock(), call.argument, call.tool.name
        try:
            result = await self._ask_in_time(call, started)
        except (ToolError, DeadlinePassed) as error:
            self.episode.calls.append(ToolCall(query, (), self.clock() - started, str(error), tool))
            raise
        self.episode.calls.append(ToolCall(query, result.passages, self.clock() - started, None, tool))
        return result

    async def _ask_in_time(self, call: Call, started: float) -> ToolResult:
        timeout_s, episode_s = self.limits.search_timeout_s, self.limits.episode_timeout_s
        deadlines = [self.deadline] if self.deadline is not None else []
        deadlines += [started + timeout_s] if timeout_s is not None else []
        try:
            return await within(call.tool.call(call.argument), min(deadlines, default=None), self.clock)
        except DeadlinePassed:
            if self.deadline is not None and self.clock() >= self.deadline:
                raise DeadlinePassed(f"the episode passed its deadline of {episode_s:g} s while it waited") from None
            raise ToolError(f"no answer within the deadline of {timeout_s:g} s for a {call.tool.name} call") from None


class DeadlinePassed(Exception):
    """The deadline of `within` passed. Not a `TimeoutError`, because the awaited work may raise one itself."""


async def within(work: Awaitable[T], deadline: float | None, clock: Clock) -> T:
    """The outcome of `work`, which is cancelled once `clock` reaches `deadline`; None means no deadline.

    If the work finishes despite the cancellation, its outcome counts; otherwise raises `DeadlinePassed`.
    """
    if deadline is None:
        return await work
    task, late = asyncio.ensure_future(work), False
    try:
        while not (task.done() or late):
            left_s = deadline - clock()
            late = left_s <= 0
            if not late:
                await asyncio.wait([task], timeout=max(left_s, MIN_WAIT_S))
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if late and task.cancelled():
        raise DeadlinePassed
    return task.result()
