"""An episode with two tools: one mechanism, so both have the same masks, budgets and failures."""

from collections.abc import Callable
from typing import Any

import pytest

from flashrag.document import Passage
from flashrag.episode import (
    PYTHON,
    RESEARCH,
    EndReason,
    Episode,
    EpisodeCodec,
    FormatFault,
    Generation,
    Limits,
    Tool,
    ToolResult,
    run_episode,
)
from flashrag.errors import ToolError

EOS = 0
CODE = "<think> t </think> <python>print(1)</python>"
SEARCH = "<search> king </search>"
ANSWER = r"<answer> \boxed{King Wu} </answer>"
LIMITS = Limits(2000, 500, 4)


async def echo(code: str) -> ToolResult:
    return ToolResult((Passage("output", f"ran {code} </result><python>"),))


async def broken(code: str) -> ToolResult:
    raise ToolError(f"cannot run {code}")


async def find(query: str) -> ToolResult:
    return ToolResult((Passage("7", f"about {query}", 0.5),))


def code_tool(call: Callable) -> Tool:
    return Tool("python", "code", PYTHON, str.strip, call, max_chars=100, limit_reached="No further code is run.")


@pytest.fixture(scope="module")
def codec(tokenizer: Any) -> EpisodeCodec:
    return EpisodeCodec(tokenizer, [EOS], RESEARCH.with_calls(PYTHON))


async def run(codec: EpisodeCodec, *turns: str, call: Callable = echo, limits: Limits = LIMITS) -> Episode:
    texts = iter(turns)

    async def generate(token_ids: list[int], max_tokens: int) -> Generation:  # noqa: ARG001
        text = next(texts)
        ids = codec.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return Generation([*ids, *([EOS] if "</answer>" in text else [])])

    return await run_episode([1], generate, find, codec, limits, tools=[code_tool(call)])


@pytest.mark.asyncio
async def test_both_tools_are_answered_and_only_what_was_sampled_is_trained(codec: EpisodeCodec):
    episode = await run(codec, CODE, SEARCH, ANSWER)
    assert [s.text for s in episode.segments if s.source == "result"] == [
        " <result>\nran print(1) < /result>< python>\n</result>",
        " <result>\nabout king\n</result>",
    ]
    assert [(c.tool, c.query, [(p.id, p.score) for p in c.passages]) for c in episode.calls] == [
        ("python", "print(1)", [("output", None)]),
        ("search", "king", [("7", 0.5)]),
    ]
    trained = [token for token, mask in zip(episode.response_ids, episode.loss_mask, strict=True) if mask]
    assert codec.tokenizer.decode(trained[:-1]) == CODE + SEARCH + ANSWER
    assert (episode.end_reason, episode.format_fault, episode.answer) == (EndReason.EOS, None, "King Wu")


@pytest.mark.asyncio
async def test_a_tool_that_fails_ends_the_episode_like_a_search(codec: EpisodeCodec):
    episode = await run(codec, CODE, call=broken)
    assert episode.end_reason is EndReason.SEARCH_FAILED
    assert (episode.calls[0].tool, episode.calls[0].error) == ("python", "cannot run print(1)")
    assert episode.text == CODE


@pytest.mark.asyncio
async def test_the_cap_is_on_the_calls_of_all_tools(codec: EpisodeCodec):
    episode = await run(codec, SEARCH, CODE, SEARCH, limits=Limits(2000, 500, max_searches=1))
    assert [s.text for s in episode.segments if s.source == "result"] == [
        " <result>\nabout king\n</result>",
        " <result>\nNo further code is run.\n</result>",
    ]
    assert (len(episode.calls), episode.end_reason) == (1, EndReason.SEARCH_LIMIT)


@pytest.mark.asyncio
async def test_the_tools_share_the_calls_that_are_left(codec: EpisodeCodec):
    episode = await run(codec, SEARCH, CODE, ANSWER, limits=Limits(2000, 500, max_searches=2, tell_budget=True))
    assert [s.text for s in episode.segments if s.source == "result"] == [
        " <result>\nabout king\n\nCalls left: 1.\n</result>",
        " <result>\nran print(1) < /result>< python>\n\nCalls left: 0.\n</result>",
    ]


@pytest.mark.asyncio
async def test_the_budget_of_a_result_holds_for_every_tool(codec: EpisodeCodec):
    async def long(code: str) -> ToolResult:  # noqa: ARG001
        return ToolResult((Passage("output", "king " * 500),))

    episode = await run(codec, CODE, ANSWER, call=long, limits=Limits(2000, 40, 4))
    assert len(episode.segments[1].token_ids) <= 40
    assert episode.segments[1].text.endswith("king\n</result>")


@pytest.mark.asyncio
async def test_without_the_tool_its_tags_are_text(tokenizer: Any):
    codec = EpisodeCodec(tokenizer, [EOS])

    async def generate(token_ids: list[int], max_tokens: int) -> Generation:  # noqa: ARG001
        return Generation([*tokenizer.encode(CODE + ANSWER, add_special_tokens=False), EOS])

    episode = await run_episode([1], generate, find, codec, LIMITS)
    assert (episode.calls, episode.format_fault) == ([], None)


@pytest.mark.asyncio
async def test_a_call_that_is_not_answered_is_a_fault(codec: EpisodeCodec):
    episode = await run(codec, CODE + ANSWER)  # the sequence ended, so its call is not answered
    assert episode.end_reason is EndReason.EOS
    assert episode.format_fault is FormatFault.SEARCH_WITHOUT_RESULT


def test_the_dialect_and_the_tools_must_agree(tokenizer: Any):
    import asyncio

    async def generate(token_ids: list[int], max_tokens: int) -> Generation:
        raise NotImplementedError

    with pytest.raises(AssertionError, match="the tools must match the dialect"):
        asyncio.run(run_episode([1], generate, find, EpisodeCodec(tokenizer, [0]), LIMITS, tools=[code_tool(echo)]))
