"""Whatever a model samples, a passage holds and a tokenizer does: an episode is token-exact.

Streams of any tokens, sampled by an engine that stops as real ones do: with the token in which the stop string ends, or
a few tokens later, as with several tokens a step. On small tokenizers, and with many more streams on published ones, in
each dialect that models are trained in.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashrag.document import Document, Passage
from flashrag.episode import (
    RESEARCH,
    SEARCH_R1,
    Dialect,
    EndReason,
    Episode,
    EpisodeCodec,
    Generation,
    Limits,
    Source,
    ToolResult,
    fit_result,
    run_episode,
)
from tests.tokenizers import PUBLISHED, SMALL, Tokenizers, comes_back_as

PIECES = [
    *RESEARCH.tags, *SEARCH_R1.result, "<search> king </search>", "<answer> Wu </answer>", "</search>\n\n",
    "</search></search>", "<search>", "</sea", "rch>", "</", "search", ">", ">\n\n", "<", " ", "\n", "king", "é", "漢",
    "🤖", r"\boxed{King Wu}",
]  # fmt: skip


class Stop(NamedTuple):
    """The end of a stop string in one of the tokens that begin with ">", by a number modulo their count."""

    number: int


# A piece of text as the tokenizer writes it, or any token at all: numbers are taken modulo the vocabulary's size.
Piece = str | int | Stop
STREAM = st.lists(
    st.sampled_from(PIECES) | st.text(max_size=5) | st.integers(0, 300_000) | st.builds(Stop, st.integers(0, 300)),
    max_size=25,
)
PASSAGES = st.lists(
    st.lists(st.sampled_from([*PIECES, "<s>", "</s>", "[EOS]", "[UNK]", "<unk>", "<0x0A>", "▁", "<|im_end|>"])
             | st.text(max_size=10)).map("".join), max_size=3,
)  # fmt: skip


class Engine:
    """Samples a stream of tokens; `beyond` more of them after the one that ends a stop string."""

    def __init__(self, codec: EpisodeCodec, stream: Sequence[int], beyond: int):
        self.codec, self.stream, self.beyond = codec, list(stream), beyond
        self.sampled: list[int] = []

    async def __call__(self, token_ids: list[int], max_tokens: int) -> Generation:  # noqa: ARG002
        ids = list(self._until_it_stops())[:max_tokens]
        del self.stream[: len(ids)]
        self.sampled += ids
        return Generation(ids, [-float(len(self.sampled))] * len(ids))

    def _until_it_stops(self) -> Iterator[int]:
        left = None
        for number, token_id in enumerate(self.stream, start=1):
            if left == 0:
                return
            yield token_id
            left = left - 1 if left is not None else None
            if token_id in self.codec.eos_token_ids:
                return
            text = self.codec.tokenizer.decode(self.stream[:number])
            if left is None and any(stop in text for stop in self.codec.dialect.stops):
                left = self.beyond


@cache
def codec_of(tokenizer: Any, dialect: Dialect = RESEARCH) -> EpisodeCodec:
    """With two tokens that end a sequence, where the vocabulary has as many."""
    others = {*tokenizer.all_special_ids} - {tokenizer.eos_token_id, tokenizer.unk_token_id}
    return EpisodeCodec(tokenizer, [tokenizer.eos_token_id, *sorted(others)[:1]], dialect)


@cache
def stops_of(tokenizer: Any) -> list[int]:
    """The tokens that begin with the last character of `</search>`; in most of them something follows."""
    return sorted(token_id for token, token_id in tokenizer.get_vocab().items() if token.startswith(">"))


@cache
def size_of(tokenizer: Any) -> int:
    return len(tokenizer)  # slow


def ids_of(tokenizer: Any, piece: Piece) -> list[int]:
    if isinstance(piece, int):
        return [piece % size_of(tokenizer)]
    if isinstance(piece, Stop):
        stops = stops_of(tokenizer)
        return [*ids_of(tokenizer, "</search"), *(stops[piece.number % len(stops) :][:1] if stops else [])]
    text = piece.encode("utf-8", "replace").decode()
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def reference_query(text: str, dialect: Dialect) -> str:
    """The query of the first closed search, in other words than the protocol's; none follows a final answer."""
    text = text.split("</answer>")[0] if dialect is SEARCH_R1 else text
    if "</search>" not in text:
        return ""
    before = text.split("</search>")[0]
    return before.split("<search>")[-1].strip() if "<search>" in before else ""


def cases(
    kinds: Sequence[Any], count: int, strategies: dict[str, Any], examples: Sequence[dict[str, Any]] = ()
) -> Callable[[Callable], Callable]:
    """Runs a test on each of some tokenizers, with so many cases."""

    def decorate(test: Callable) -> Callable:
        made = settings(deadline=None, max_examples=count)(given(**strategies)(test))
        for values in examples:
            made = example(**values)(made)
        return pytest.mark.parametrize("kind", kinds)(made)

    return decorate


EPISODES: dict[str, Any] = {
    "stream": STREAM,
    "passages": PASSAGES,
    "budget": st.integers(1, 300),
    "beyond": st.integers(0, 2),
    "end": st.sampled_from([None, 0, -1]),  # which of the tokens that end a sequence follows the stream
    "told": st.booleans(),  # how many searches are left
    "forced": st.none() | st.lists(st.sampled_from([*PIECES, "</s>", "<|im_end|>"])).map("".join),
    "dialect": st.sampled_from([RESEARCH, SEARCH_R1]),
}


async def an_episode_is_exact(
    tokenizers: Tokenizers,
    kind: str,
    stream: list[Piece],
    passages: list[str],
    budget: int,
    beyond: int,
    end: int | None,
    told: bool,
    forced: str | None,
    dialect: Dialect,
) -> None:
    if kind == "word-level":  # no word of it is a tag with text beside it, as in Search-R1's results
        dialect = RESEARCH
    codec = codec_of(tokenizers[kind], dialect)
    ends = sorted(codec.eos_token_ids)
    ids = [token_id for piece in stream for token_id in ids_of(codec.tokenizer, piece)]
    engine = Engine(codec, ids if end is None else [*ids, ends[end]], beyond)
    queries: list[str] = []

    async def search(query: str) -> ToolResult:
        queries.append(query)
        return ToolResult(tuple(Passage(str(n), passage) for n, passage in enumerate(passages)))

    limits = Limits(budget, 80, 3, tell_budget=told)
    episode = await run_episode([1], engine, search, codec, limits, forced_query=forced)  # checks its own invariants
    check_mask(episode, engine, budget)
    check_texts(episode, codec, kind)
    results = [segment.text for segment in episode.segments if segment.call is not None]
    end_of_result = f"{dialect.margin}{dialect.result.close}"
    assert [told and f"Searches left: {2 - n}.{end_of_result}" in text for n, text in enumerate(results)] == [
        told for _ in results
    ]
    if forced is not None and episode.segments:
        assert [segment.source for segment in episode.segments[:2]][-1] in (Source.FORCED, Source.RESULT)
    searched = [s for s in episode.segments if s.source is not Source.RESULT and "</search>" in s.text]
    asked = [query for query in (reference_query(s.text, dialect) for s in searched) if query]
    assert queries == asked[: len(queries)]
    # Every segment but the last closed a search; a search that got no result is what ended the episode.
    assert all("</search>" in s.text for s in episode.segments[:-1] if s.source is Source.MODEL)
    if episode.end_reason is EndReason.EOS:
        assert episode.response_ids[-1] in ends
    elif episode.end_reason is EndReason.ANSWERED:
        assert dialect is SEARCH_R1
        assert "</answer>" in episode.segments[-1].text
    else:
        assert episode.end_reason in (EndReason.LENGTH, EndReason.SEARCH_LIMIT)


EXAMPLES = [
    dict(zip(EPISODES, values, strict=True))
    for values in [
        (["<search> king </search>\n\n", "king"], ["</result>"], 300, 0, None, False, None, RESEARCH),
        (["<search> king ", "</search></search>", 1], ["king"], 300, 1, 0, True, "<search> king </search>", RESEARCH),
        (["<search>", "king", "</", "search", ">", "é"], ["é"], 300, 2, -1, True, "", RESEARCH),
        (
            ["<search> king </search>\n\n", "<answer> Wu </answer>", "<search> king </search>"],
            ["</information>"],
            300,
            0,
            0,
            True,
            None,
            SEARCH_R1,
        ),
    ]
]
test_an_episode_is_exact = pytest.mark.asyncio(cases(SMALL, 120, EPISODES, EXAMPLES)(an_episode_is_exact))
test_an_episode_is_exact_in_a_published_vocabulary = pytest.mark.timeout(600)(
    pytest.mark.asyncio(cases(PUBLISHED, 2000, EPISODES, EXAMPLES)(an_episode_is_exact))
)


def check_mask(episode: Episode, engine: Engine, budget: int) -> None:
    masked = list(zip(episode.response_ids, episode.loss_mask, episode.log_probs, strict=True))
    assert [token_id for token_id, mask, _ in masked if mask] == engine.sampled
    assert all((log_prob == 0.0) == (mask == 0) for _, mask, log_prob in masked)
    assert len(masked) <= budget


def check_texts(episode: Episode, codec: EpisodeCodec, kind: str) -> None:
    for segment in episode.segments:
        ids = list(segment.token_ids)
        decoded = codec.tokenizer.decode(ids[:-1] if codec.ends_sequence(ids) else ids, skip_special_tokens=False)
        if segment.source is Source.MODEL:
            assert segment.text == decoded
        else:
            assert ids == codec.encode_text(segment.text)
            assert decoded == comes_back_as(kind, segment.text) or kind == "word-level"  # which keeps no spaces
            assert not set(ids) & codec.control_ids
            tag = codec.dialect.search if segment.source is Source.FORCED else codec.dialect.result
            assert codec.dialect.pattern.findall(decoded) == list(tag)
            assert len(ids) <= 80 or segment.source is Source.FORCED


def segmentations(tokenizer: Any, text: str) -> Iterator[list[int]]:
    """The text cut in every way, each part as the tokenizer writes it."""
    for count in range(len(text)):
        for cuts in combinations(range(1, len(text)), count):
            parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
            yield [token_id for part in parts for token_id in ids_of(tokenizer, part)]


@pytest.mark.parametrize("kind", ["byte-level", *PUBLISHED])
@pytest.mark.asyncio
async def test_a_call_is_answered_in_every_segmentation_of_its_tag(tokenizers: Tokenizers, kind: str):
    """256 of them, and each token of the vocabulary in which the tag's last character begins."""
    codec = codec_of(tokenizers[kind])
    closed = [*segmentations(codec.tokenizer, "</search>")]
    assert len(closed) == 256
    closed += [ids_of(codec.tokenizer, Stop(number)) for number in range(len(stops_of(codec.tokenizer)))]
    for tag in closed:
        sampled = [*ids_of(codec.tokenizer, "<search> king "), *tag]

        async def search(query: str) -> ToolResult:
            return ToolResult((Passage(query, "Wu"),))

        episode = await run_episode([1], Engine(codec, sampled, 0), search, codec, Limits(300, 80, 1))
        assert [(call.query, call.error) for call in episode.calls] == [("king", None)], tag
        model, result, *_ = episode.segments
        assert model.token_ids == tuple(sampled)
        assert list(result.token_ids) == codec.encode_text(" <result>\nWu\n</result>")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@settings(deadline=None, max_examples=60)
@given(passages=PASSAGES)
def test_a_spliced_text_comes_back_from_its_ids(tokenizers: Tokenizers, kind: str, passages: list[str]):
    codec = codec_of(tokenizers[kind])
    documents = [Document(str(number), passage) for number, passage in enumerate(passages)]
    spliced = fit_result(documents, codec.encode_text, 100_000, codec.control_strings)
    assert spliced is not None
    decoded = codec.tokenizer.decode(spliced.token_ids, skip_special_tokens=False)
    assert decoded == comes_back_as(kind, spliced.text)


def test_each_kind_has_its_boundaries(tokenizers: Tokenizers):
    """The streams above cover a stop string inside a token, two tags in one token, and a tag over several tokens."""
    tokens = {kind: tokenizers[kind].convert_ids_to_tokens(range(len(tokenizers[kind]))) for kind in SMALL}
    assert "</search></search>" in tokens["word-level"]
    assert any(token.startswith(">Ċ") for token in tokens["byte-level"])
    assert any("</search>" in token and not token.endswith("</search>") for token in tokens["sentencepiece"])
    for kind in ("byte-level", "sentencepiece"):
        assert len(tokenizers[kind].encode("x</sea rch", add_special_tokens=False)) > 2
