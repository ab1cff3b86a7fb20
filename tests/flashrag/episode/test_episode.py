"""The episode on a real tokenizer, with an engine whose every answer is written by hand."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from flashrag.document import Document, Hit, Passage
from flashrag.episode import (
    EndReason,
    Episode,
    EpisodeCodec,
    FormatFault,
    Generation,
    InvariantViolation,
    Limits,
    Segment,
    Source,
    ToolResult,
    check_invariants,
    run_episode,
)
from flashrag.episode.result import NO_RESULTS
from flashrag.episode.tool import SEARCH_LIMIT_REACHED, CallFault
from flashrag.errors import SearchError

THINK_AND_SEARCH = "<think> t </think> <search> first king of Zhou </search>"
ANSWER = r"<answer> \boxed{King Wu} </answer>"
KING = Document("7", '"King"\nKing Wu')
LIMITS = Limits(max_response_tokens=2000, max_result_tokens=500, max_searches=4)
EOS = 0


class Engine:
    """Samples the given turns one after another; remembers what it was asked."""

    def __init__(self, *turns: Sequence[int], with_log_probs: bool = False):
        self.turns = list(turns)
        self.prompts: list[list[int]] = []
        self.budgets: list[int] = []
        self.with_log_probs = with_log_probs

    async def __call__(self, token_ids: list[int], max_tokens: int) -> Generation:
        self.prompts.append(token_ids)
        self.budgets.append(max_tokens)
        ids = self.turns.pop(0)[:max_tokens]
        return Generation(ids, [-0.5] * len(ids) if self.with_log_probs else None)


class Index:
    """Finds the same documents for every query; remembers the queries."""

    def __init__(self, *documents: Document, error: Exception | None = None):
        self.documents = documents
        self.queries: list[str] = []
        self.error = error

    async def __call__(self, query: str) -> ToolResult:
        self.queries.append(query)
        if self.error:
            raise self.error
        return ToolResult.ranked(Hit(document, 1 / rank) for rank, document in enumerate(self.documents, start=1))


@pytest.fixture(scope="module")
def codec(tokenizer: Any) -> EpisodeCodec:
    return EpisodeCodec(tokenizer, [EOS])


@pytest.fixture(scope="module")
def ids(tokenizer: Any):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.asyncio
async def test_two_searches_and_an_answer(codec: EpisodeCodec, ids: Any):
    prompt, first, second, last = [5, 6, 7], ids(THINK_AND_SEARCH), ids("\n<search> Wu </search>"), [*ids(ANSWER), EOS]
    engine, index = Engine(first, second, last, with_log_probs=True), Index(KING)
    episode = await run_episode(prompt, engine, index, codec, LIMITS)

    result = ids(' <result>\n"King"\nKing Wu\n</result>')
    assert index.queries == ["first king of Zhou", "Wu"]
    assert episode.response_ids == [*first, *result, *second, *result, *last]
    n, r = [1] * len(first), [0] * len(result)
    assert episode.loss_mask == [*n, *r, *[1] * len(second), *r, *[1] * len(last)]
    assert episode.log_probs == [-0.5 * sampled for sampled in episode.loss_mask]
    # Each turn sees all that came before, and may sample what is left of the budget.
    assert engine.prompts == [
        prompt,
        [*prompt, *first, *result],
        [*prompt, *first, *result, *second, *result],
    ]
    spent = len(first) + len(result)
    assert engine.budgets == [2000, 2000 - spent, 2000 - spent - len(second) - len(result)]
    assert episode.end_reason is EndReason.EOS
    assert episode.answer == "King Wu"
    assert episode.format_fault is None
    assert [(c.tool, c.query, c.passages, c.error) for c in episode.calls] == [
        ("search", "first king of Zhou", (Passage("7", KING.contents, 1.0),), None),
        ("search", "Wu", (Passage("7", KING.contents, 1.0),), None),
    ]
    assert [segment.call for segment in episode.segments] == [None, 0, None, 1, None]
    assert episode.text.endswith(ANSWER)  # without the end of sequence


@pytest.mark.asyncio
async def test_a_stop_string_may_end_inside_a_token(codec: EpisodeCodec, ids: Any, tokenizer: Any):
    sampled = ids(THINK_AND_SEARCH + "\n\n")
    assert tokenizer.decode(sampled[-1:]) == ">\n\n"
    index = Index(KING)
    episode = await run_episode([1], Engine(sampled, [*ids(ANSWER), EOS]), index, codec, LIMITS)
    assert index.queries == ["first king of Zhou"]
    assert episode.segments[0].token_ids == tuple(sampled)  # the whole last token stays
    assert episode.text.startswith(THINK_AND_SEARCH + '\n\n <result>\n"King"')
    assert episode.format_fault is None


@pytest.mark.asyncio
async def test_sampled_ids_are_kept_although_encoding_their_text_gives_others(codec: EpisodeCodec, tokenizer: Any):
    # Letter by letter: the same text, but no id that the tokenizer would choose.
    letters = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(letter))[0] for letter in "<search>Wu</search>"]
    assert tokenizer.decode(letters) == "<search>Wu</search>"
    assert tokenizer.encode("<search>Wu</search>", add_special_tokens=False) != letters
    index = Index(KING)
    episode = await run_episode([1], Engine(letters, [EOS]), index, codec, LIMITS)
    assert index.queries == ["Wu"]
    assert episode.response_ids[: len(letters)] == letters


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "fault", "told"),
    [
        ("<search>  </search>", CallFault.EMPTY, "The search query was empty."),
        # The notice names a tag, which must not be live.
        (
            "Wu </search>",
            CallFault.UNOPENED,
            "The search was closed without being opened. Write < search> query < /search>.",
        ),
        (
            f"<search> {'x ' * 600} </search>",
            CallFault.TOO_LONG,
            "The search query was longer than 1000 characters.",
        ),
    ],
)
async def test_a_bad_query_is_told_to_the_model_and_not_searched(
    codec: EpisodeCodec, ids: Any, text: str, fault: CallFault, told: str
):
    index = Index(KING)
    limits = Limits(4000, 500, 4)
    episode = await run_episode([1], Engine(ids(text), [*ids(ANSWER), EOS]), index, codec, limits)
    assert index.queries == []
    assert episode.calls[0].error == fault.name.lower()
    assert episode.segments[1].text == f" <result>\n{told}\n</result>"
    assert episode.end_reason is EndReason.EOS


@pytest.mark.asyncio
async def test_past_the_limit_the_model_is_told_once_then_the_episode_ends(codec: EpisodeCodec, ids: Any):
    index, search = Index(KING), ids("<search> Wu </search>")
    episode = await run_episode([1], Engine(*[search] * 4), index, codec, Limits(2000, 500, max_searches=2))
    assert index.queries == ["Wu", "Wu"]
    assert [segment.source for segment in episode.segments] == [Source.MODEL, Source.RESULT] * 3 + [Source.MODEL]
    assert SEARCH_LIMIT_REACHED in episode.segments[5].text
    assert episode.end_reason is EndReason.SEARCH_LIMIT
    assert len(episode.calls) == 2
    assert episode.format_fault is FormatFault.NOT_ENDED


@pytest.mark.asyncio
async def test_each_result_tells_how_many_searches_are_left(codec: EpisodeCodec, ids: Any):
    """A malformed search counts too; the notice of the limit says by itself that none is left."""
    search, malformed, last = ids("<search> Wu </search>"), ids("<search></search>"), [*ids(ANSWER), EOS]
    limits = Limits(2000, 500, max_searches=3, tell_budget=True)
    engine = Engine(search, malformed, search, search, last, with_log_probs=True)
    episode = await run_episode([1], engine, Index(KING), codec, limits)
    results = [ids(f" <result>\n{body}\n</result>") for body in (
        '"King"\nKing Wu\n\nSearches left: 2.',
        "The search query was empty.\n\nSearches left: 1.",
        '"King"\nKing Wu\n\nSearches left: 0.',
        SEARCH_LIMIT_REACHED,
    )]  # fmt: skip
    first, second, third, notice = results
    assert episode.response_ids == [*search, *first, *malformed, *second, *search, *third, *search, *notice, *last]
    assert episode.loss_mask == [
        int(sampled)
        for turn, result in zip((search, malformed, search, search), results, strict=True)
        for sampled in [True] * len(turn) + [False] * len(result)
    ] + [1] * len(last)
    assert episode.end_reason is EndReason.EOS


@pytest.mark.asyncio
@pytest.mark.parametrize("room", [0, -1])
async def test_what_is_left_counts_in_the_budget_of_a_result(codec: EpisodeCodec, ids: Any, room: int):
    """One token less, and the second passage has no room; without the telling both had."""
    whole = ids(' <result>\n"King"\nKing Wu\n\n"King"\nKing Wu\n\nSearches left: 3.\n</result>')
    shorter = ids(' <result>\n"King"\nKing Wu\n\nSearches left: 3.\n</result>')
    limits = Limits(2000, len(whole) + room, max_searches=4, tell_budget=True)
    engine = Engine(ids(THINK_AND_SEARCH), [*ids(ANSWER), EOS])
    episode = await run_episode([1], engine, Index(KING, KING), codec, limits)
    assert list(episode.segments[1].token_ids) == (shorter if room else whole)


QUESTION = "Who was the first king of Zhou?"


@pytest.mark.asyncio
async def test_a_forced_search_is_spliced_in_before_the_model_samples(codec: EpisodeCodec, ids: Any):
    prompt, index = ids("User: Who? Assistant:"), Index(KING)
    engine = Engine(ids(THINK_AND_SEARCH), [*ids(f" <think> t </think> {ANSWER}"), EOS], with_log_probs=True)
    first, last = engine.turns
    limits = Limits(2000, 500, max_searches=2, tell_budget=True)
    episode = await run_episode(prompt, engine, index, codec, limits, forced_query=f" {QUESTION}\n")

    forced = ids(f" <search> {QUESTION} </search>")
    result = ids(' <result>\n"King"\nKing Wu\n\nSearches left: 1.\n</result>')
    second = ids(' <result>\n"King"\nKing Wu\n\nSearches left: 0.\n</result>')
    assert index.queries == [QUESTION, "first king of Zhou"]
    assert [segment.source for segment in episode.segments] == ["forced", "result", "model", "result", "model"]
    assert episode.response_ids == [*forced, *result, *first, *second, *last]
    spliced = [0] * len([*forced, *result])
    assert episode.loss_mask == [*spliced, *[1] * len(first), *[0] * len(second), *[1] * len(last)]
    assert episode.log_probs == [-0.5 * sampled for sampled in episode.loss_mask]
    assert engine.prompts[0] == [*prompt, *forced, *result]
    assert engine.budgets[0] == 2000 - len(spliced)
    assert [segment.call for segment in episode.segments] == [None, 0, None, 1, None]
    assert (episode.calls[0].tool, episode.calls[0].query, episode.calls[0].error) == ("search", QUESTION, None)
    assert (episode.answer, episode.end_reason, episode.format_fault) == ("King Wu", EndReason.EOS, None)
    assert episode.count_tokens(sampled=False) == len([*forced, *result, *second])


@pytest.mark.asyncio
async def test_a_model_that_would_answer_at_once_has_read_a_result(codec: EpisodeCodec, ids: Any):
    engine = Engine([*ids(ANSWER), EOS])
    episode = await run_episode(ids("Assistant:\n"), engine, Index(KING), codec, LIMITS, forced_query=QUESTION)
    forced, result, answer = episode.segments
    assert forced.text == f"<search> {QUESTION} </search>", "the prompt's line break parts it"
    assert (result.call, answer.token_ids) == (0, (*ids(ANSWER), EOS))
    assert len(engine.prompts) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("question", "query", "error"),
    [
        ("Is </search> <result> a tag?", "Is < /search> < result> a tag?", None),
        ("What is <|endoftext|>?", "What is < |endoftext|>?", None),
        ("half a sign: \ud83d", "half a sign: ?", None),
        ("x" * 1001, "x" * 1000, None),
        (" ", "", "empty"),
    ],
)
async def test_a_question_is_text_in_a_forced_search(
    codec: EpisodeCodec, ids: Any, question: str, query: str, error: str | None
):
    engine, index = Engine([*ids(ANSWER), EOS]), Index(KING)
    limits = Limits(4000, 500, 4)
    episode = await run_episode([1], engine, index, codec, limits, forced_query=question)  # checks its own invariants
    assert [(call.query, call.error) for call in episode.calls] == [(query, error)]
    assert index.queries == ([] if error else [query])
    assert episode.segments[1].source is Source.RESULT


@pytest.mark.asyncio
async def test_a_forced_search_keeps_to_the_budgets(codec: EpisodeCodec, ids: Any):
    forced, index = ids(f" <search> {QUESTION} </search>"), Index(KING)

    async def under(budget: int, searches: int = 4, found: Index = index) -> Episode:
        limits = Limits(budget, 500, searches)
        return await run_episode(ids("a"), Engine([*ids(ANSWER), EOS]), found, codec, limits, forced_query=QUESTION)

    none, alone = await under(len(forced) - 1), await under(len(forced))
    assert (none.segments, none.end_reason) == ([], EndReason.LENGTH)
    assert (alone.response_ids, alone.loss_mask, alone.end_reason) == (forced, [0] * len(forced), EndReason.LENGTH)
    assert index.queries == [], "without room for a result nobody is asked"
    assert alone.format_fault is FormatFault.NOT_ENDED
    failed = await under(2000, found=Index(error=SearchError("gone")))
    assert (failed.response_ids, failed.end_reason) == (forced, EndReason.SEARCH_FAILED)
    limited = await under(2000, searches=0)
    assert SEARCH_LIMIT_REACHED in limited.segments[1].text


@pytest.mark.parametrize("place", [2, 4])
def test_only_the_beginning_can_be_forced(codec: EpisodeCodec, ids: Any, place: int):
    def segment(source: Source, text: str) -> Segment:
        return Segment(source, text, tuple(ids(text)))

    result = segment(Source.RESULT, " <result>\nWu\n</result>")
    turns = [segment(Source.FORCED, " <search> Wu </search>"), result, segment(Source.MODEL, "a"), result]
    check_invariants(Episode((1,), turns), codec)
    late = [*turns, segment(Source.MODEL, "b")]
    late[place] = turns[0]
    with pytest.raises(InvariantViolation, match="do not alternate"):
        check_invariants(Episode((1,), late), codec)
    twice = [segment(Source.FORCED, " <search> Wu </search> <search> Wu </search>")]
    with pytest.raises(InvariantViolation, match="in the spliced search"):
        check_invariants(Episode((1,), twice), codec)


@pytest.mark.asyncio
async def test_a_passage_with_the_words_of_the_limit_is_no_notice_of_it(codec: EpisodeCodec, ids: Any):
    index, search = Index(Document("1", SEARCH_LIMIT_REACHED)), ids("<search> Wu </search>")
    episode = await run_episode([1], Engine(*[search] * 3), index, codec, Limits(2000, 500, max_searches=1))
    assert len([segment for segment in episode.segments if segment.source is Source.RESULT]) == 2


@pytest.mark.asyncio
async def test_a_model_that_heeds_the_limit_can_still_answer(codec: EpisodeCodec, ids: Any):
    search, index = ids(THINK_AND_SEARCH), Index(KING)
    episode = await run_episode([1], Engine(search, [*ids(ANSWER), EOS]), index, codec, Limits(2000, 500, 0))
    assert index.queries == []
    assert SEARCH_LIMIT_REACHED in episode.segments[1].text
    assert episode.answer == "King Wu"
    assert episode.end_reason is EndReason.EOS


@pytest.mark.asyncio
async def test_a_failed_search_ends_the_episode_without_any_text(codec: EpisodeCodec, ids: Any):
    sampled = ids(THINK_AND_SEARCH)
    index = Index(error=SearchError("http://127.0.0.1:1/search cannot be reached"))
    episode = await run_episode([1], Engine(sampled), index, codec, LIMITS)
    assert episode.end_reason is EndReason.SEARCH_FAILED
    assert episode.response_ids == sampled
    assert episode.calls[-1].error == "http://127.0.0.1:1/search cannot be reached"
    assert "None" not in episode.text
    assert "<result>" not in episode.text


@pytest.mark.asyncio
async def test_an_unexpected_error_is_not_swallowed(codec: EpisodeCodec, ids: Any):
    index = Index(error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await run_episode([1], Engine(ids(THINK_AND_SEARCH)), index, codec, LIMITS)


@pytest.mark.asyncio
async def test_no_documents_are_a_result_that_says_so(codec: EpisodeCodec, ids: Any):
    episode = await run_episode([1], Engine(ids(THINK_AND_SEARCH), [EOS]), Index(), codec, LIMITS)
    assert episode.segments[1].text == f" <result>\n{NO_RESULTS}\n</result>"
    assert episode.calls[0].passages == ()


@pytest.mark.asyncio
@pytest.mark.parametrize("extra", range(60))
async def test_wherever_the_budget_ends_the_episode_stays_exact(codec: EpisodeCodec, ids: Any, extra: int):
    """From a budget that ends inside the first thought to one that has room for everything."""
    first = ids(THINK_AND_SEARCH)
    budget = len(first) - 3 + extra
    engine = Engine(first, [*ids(ANSWER), EOS])
    episode = await run_episode([1], engine, Index(KING, KING), codec, Limits(budget, 40, 4))
    assert len(episode.response_ids) <= budget
    assert len(episode.loss_mask) == len(episode.response_ids)
    whole = episode.end_reason is EndReason.EOS
    assert whole == (episode.answer == "King Wu" and episode.response_ids[-1] == EOS)
    assert whole or episode.end_reason is EndReason.LENGTH
    for segment in episode.segments:
        if segment.source is Source.RESULT:
            assert segment.text.startswith(" <result>\n")
            assert segment.text.endswith("\n</result>")


@pytest.mark.asyncio
async def test_a_length_stop_is_no_answer(codec: EpisodeCodec, ids: Any):
    episode = await run_episode([1], Engine(ids("<think> t </think> " + ANSWER)), Index(), codec, LIMITS)
    assert episode.end_reason is EndReason.LENGTH
    assert episode.format_fault is FormatFault.NOT_ENDED


@pytest.mark.asyncio
async def test_an_aborted_request_ends_the_episode(codec: EpisodeCodec):
    async def aborted(token_ids: list[int], max_tokens: int) -> Generation:  # noqa: ARG001
        return Generation([], aborted=True)

    episode = await run_episode([1], aborted, Index(), codec, LIMITS)
    assert episode.end_reason is EndReason.ABORTED
    assert episode.response_ids == []
    assert episode.answer == ""


@pytest.mark.asyncio
async def test_a_special_token_that_the_model_sampled_stays(codec: EpisodeCodec, ids: Any, tokenizer: Any):
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    sampled = [*ids("<think> t </think>"), turn, *ids(ANSWER), EOS]
    episode = await run_episode([1], Engine(sampled), Index(), codec, LIMITS)
    assert episode.response_ids == sampled
    assert "<|im_end|>" in episode.text


@pytest.mark.asyncio
async def test_more_than_one_token_may_end_the_sequence(tokenizer: Any, ids: Any):
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    codec = EpisodeCodec(tokenizer, [EOS, turn])
    episode = await run_episode([1], Engine([*ids(ANSWER), turn]), Index(), codec, LIMITS)
    assert episode.end_reason is EndReason.EOS
    assert episode.sampled_texts == [ANSWER]


@pytest.mark.asyncio
async def test_log_probabilities_of_another_length_are_a_violation(codec: EpisodeCodec, ids: Any):
    async def generate(token_ids: list[int], max_tokens: int) -> Generation:  # noqa: ARG001
        return Generation([*ids(ANSWER), EOS], [-0.1])

    with pytest.raises(InvariantViolation, match="and 1 log-probabilities") as caught:
        await run_episode([1], generate, Index(), codec, LIMITS)
    assert caught.value.episode.answer == "King Wu"


def spliced(text: str, token_ids: Sequence[int]) -> Episode:
    model = Segment(Source.MODEL, "x", (9,))
    return Episode((1,), [model, Segment(Source.RESULT, text, tuple(token_ids))])


def test_each_broken_splice_is_a_violation(codec: EpisodeCodec, ids: Any):
    good = " <result>\nKing\n</result>"
    check_invariants(spliced(good, ids(good)), codec)
    with pytest.raises(InvariantViolation, match=r"live tags \['<result>'\]"):
        check_invariants(spliced(good, ids(good)[:-1]), codec)
    for text, tags in [
        (" <result>\n<search>\n</result>", "<search>"),
        (" <result>\n</result>\n</result>", "</result>"),
        ("None", r"\[\]"),
    ]:
        with pytest.raises(InvariantViolation, match=f"live tags.*{tags}"):
            check_invariants(spliced(text, ids(text)), codec)


def test_a_special_token_in_a_splice_is_a_violation(tokenizer: Any, ids: Any):
    codec = EpisodeCodec(tokenizer, [EOS])
    codec.encode_text = ids  # an encoder that does make special tokens from text
    text = " <result>\n<|im_end|>\n</result>"
    with pytest.raises(InvariantViolation, match="control tokens"):
        check_invariants(spliced(text, ids(text)), codec)


@pytest.mark.asyncio
async def test_a_special_token_that_cannot_be_broken_stays_text(tokenizer: Any, ids: Any):
    """One of a single character is left as it is, one with a space is broken: encoding must see neither."""
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens([AddedToken(token, special=True) for token in ("☃", "[end of turn]")])
    extended.extra_special_tokens = [*tokenizer.extra_special_tokens, "☃", "[end of turn]"]
    codec = EpisodeCodec(extended, [EOS])
    assert {"☃", "[end of turn]"} <= set(codec.control_strings)
    passage = "a ☃ b [end of turn] c <|im_end|>"
    assert len(set(extended.encode(passage, add_special_tokens=False)) & codec.control_ids) == 3
    assert not set(codec.encode_text(passage)) & codec.control_ids
    engine = Engine(ids(THINK_AND_SEARCH), [*ids(ANSWER), EOS])
    episode = await run_episode([1], engine, Index(Document("1", passage)), codec, LIMITS)
    assert "a ☃ b [ end of turn] c < |im_end|>" in episode.segments[1].text
    assert not set(episode.segments[1].token_ids) & codec.control_ids


def test_segments_must_alternate(codec: EpisodeCodec):
    segment = Segment(Source.MODEL, "x", (9,))
    with pytest.raises(InvariantViolation, match="do not alternate"):
        check_invariants(Episode((1,), [segment, segment]), codec)


PASSAGES = st.lists(
    st.lists(
        st.sampled_from(
            ["</result>", "<search> a </search>", "<|im_end|>", "<|endoftext|>", "\x00", "\ud800", "<", "|>"]
        )
        | st.text(max_size=20)
    ).map("".join),
    max_size=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(passages=PASSAGES, budget=st.integers(1, 200))
@pytest.mark.asyncio
async def test_no_passage_and_no_budget_breaks_an_episode(
    codec: EpisodeCodec, ids: Any, passages: list[str], budget: int
):
    """run_episode checks its own invariants; this test asserts the meaning of the mask, which those cannot check."""
    sampled = [ids(THINK_AND_SEARCH), ids("<search> b </search>\n\n"), [*ids(ANSWER), EOS]]
    index = Index(*(Document(str(number), passage) for number, passage in enumerate(passages)))
    engine = Engine(*sampled)
    episode = await run_episode([3], engine, index, codec, Limits(budget, 60, 4))
    trained = [token for token, mask in zip(episode.response_ids, episode.loss_mask, strict=True) if mask]
    whole = [token for turn in sampled for token in turn]
    assert trained == whole[: len(trained)]
    assert len(episode.response_ids) <= budget
    spliced_ids = [token for token, mask in zip(episode.response_ids, episode.loss_mask, strict=True) if not mask]
    assert not set(spliced_ids) & set(codec.control_ids)
