"""Searches and episodes that take too long: how they end, and that they stay token-exact."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flashrag.document import Passage
from flashrag.episode import EndReason, Episode, EpisodeCodec, FormatFault, Generation, Limits, ToolResult, run_episode

SEARCH = "<think> t </think> <search> king </search>"
NEVER_S = 60.0


@pytest.fixture(scope="module")
def codec(tokenizer: Any) -> EpisodeCodec:
    return EpisodeCodec(tokenizer, [0])


async def run(
    codec: EpisodeCodec, limits: Limits, decode_s: list[float], search_s: float = 0.0, clock: Callable | None = None
) -> Episode:
    """An episode that searches in every turn; a turn takes `decode_s`, a search `search_s`."""
    turns = iter(decode_s)

    async def generate(token_ids: list[int], max_tokens: int) -> Generation:  # noqa: ARG001
        await asyncio.sleep(next(turns))
        return Generation(codec.tokenizer.encode(SEARCH, add_special_tokens=False, split_special_tokens=True))

    async def search(query: str) -> ToolResult:  # noqa: ARG001
        await asyncio.sleep(search_s)
        return ToolResult((Passage("7", "King Wu", 0.5),))

    async with asyncio.timeout(20):
        return await run_episode([1], generate, search, codec, limits, **({"clock": clock} if clock else {}))


@pytest.mark.asyncio
async def test_a_search_past_its_deadline_is_a_failed_search(codec: EpisodeCodec):
    limits = Limits(2000, 500, 4, search_timeout_s=0.05, episode_timeout_s=NEVER_S)
    episode = await run(codec, limits, [0.0], search_s=NEVER_S)
    assert episode.end_reason is EndReason.SEARCH_FAILED
    (search,) = episode.calls
    assert search.error == "no answer within the deadline of 0.05 s for a search call"
    assert search.passages == ()
    assert search.latency_s >= 0.05
    assert episode.text == SEARCH


@pytest.mark.asyncio
async def test_an_episode_past_its_deadline_ends_while_it_searches(codec: EpisodeCodec):
    limits = Limits(2000, 500, 4, search_timeout_s=NEVER_S, episode_timeout_s=0.05)
    episode = await run(codec, limits, [0.0], search_s=NEVER_S)
    assert episode.end_reason is EndReason.DEADLINE
    assert episode.calls[0].error == "the episode passed its deadline of 0.05 s while it waited"
    assert (episode.text, episode.format_fault) == (SEARCH, FormatFault.NOT_ENDED)


@pytest.mark.asyncio
async def test_an_episode_past_its_deadline_ends_while_it_decodes(codec: EpisodeCodec):
    limits = Limits(2000, 500, 4, episode_timeout_s=0.3)
    episode = await run(codec, limits, [0.0, NEVER_S])
    assert episode.end_reason is EndReason.DEADLINE
    # The tokens of the second turn are unknown, so none of them stays.
    assert [segment.source for segment in episode.segments] == ["model", "result"]
    assert episode.calls[0].error is None
    assert episode.format_fault is FormatFault.NOT_ENDED
    assert episode.generate_s >= 0.2


@pytest.mark.asyncio
async def test_a_deadline_before_the_first_token_leaves_an_empty_response(codec: EpisodeCodec):
    episode = await run(codec, Limits(2000, 500, 4, episode_timeout_s=0.02), [NEVER_S])
    assert (episode.end_reason, episode.response_ids, episode.answer) == (EndReason.DEADLINE, [], "")


@pytest.mark.asyncio
async def test_time_that_the_clock_does_not_count_brings_no_deadline(codec: EpisodeCodec):
    """An outage pauses the clock: a search of 0.3 s costs nothing of a deadline of 0.1 s."""
    limits = Limits(2000, 500, max_searches=1, search_timeout_s=0.1, episode_timeout_s=0.1)
    episode = await run(codec, limits, [0.0] * 3, search_s=0.3, clock=lambda: 5.0)
    assert episode.end_reason is EndReason.SEARCH_LIMIT
    assert [search.latency_s for search in episode.calls] == [0.0]
