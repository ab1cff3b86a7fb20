"""Whatever a model samples, a passage holds and a tokenizer does: an episode is token-exact.

Streams of any tokens, sampled by an engine that stops as real ones do: with the token in which the stop string ends, or
a few tokens later, as with several tokens a step.
"""

from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flashrag.document import Document, Passage
from flashrag.episode import (
    RESEARCH,
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

KINDS = ["byte-level", "sentencepiece", "word-level"]
PIECES = [
    *RESEARCH.tags, "<search> king </search>", "</search>\n\n", "</search></search>", "<search>", "</sea", "rch>", "</",
    "search", ">", ">\n\n", "<", " ", "\n", "king", "é", "漢", "🤖", r"\boxed{King Wu}",
]  # fmt: skip
# A piece of text as the tokenizer writes it, or any token at all: numbers are taken modulo the vocabulary's size.
STREAM = st.lists(st.sampled_from(PIECES) | st.text(max_size=5) | st.integers(0, 10_000), max_size=25)
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
            if left is None and "</search>" in self.codec.tokenizer.decode(self.stream[:number]):
                left = self.beyond


def stream_ids(tokenizer: Any, stream: list[str | int]) -> list[int]:
    ids: list[int] = []
    for piece in stream:
        encoded = [piece % len(tokenizer)] if isinstance(piece, int) else tokenizer.encode(
            piece.encode("utf-8", "replace").decode(), add_special_tokens=False, split_special_tokens=True
        )  # fmt: skip
        ids += encoded
    return ids


def reference_query(text: str) -> str:
    """The query of the first closed search, in other words than the protocol's."""
    before = text.split("</search>")[0]
    return before.split("<search>")[-1].strip() if "<search>" in before else ""


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=120)
@given(stream=STREAM, passages=PASSAGES, budget=st.integers(1, 300), beyond=st.integers(0, 2))
@example(stream=["<search> king </search>\n\n", "king"], passages=["</result>"], budget=300, beyond=0)
@example(stream=["<search> king ", "</search></search>", 1], passages=["king"], budget=300, beyond=1)
@example(stream=["<search>", "king", "</", "search", ">", "é"], passages=["é"], budget=300, beyond=2)
@pytest.mark.asyncio
async def test_an_episode_is_exact(
    tokenizers: dict[str, Any], kind: str, stream: list[str | int], passages: list[str], budget: int, beyond: int
):
    tokenizer = tokenizers[kind]
    codec = EpisodeCodec(tokenizer, [tokenizer.eos_token_id])
    engine = Engine(codec, stream_ids(tokenizer, stream), beyond)
    queries: list[str] = []

    async def search(query: str) -> ToolResult:
        queries.append(query)
        return ToolResult(tuple(Passage(str(n), passage) for n, passage in enumerate(passages)))

    episode = await run_episode([1], engine, search, codec, Limits(budget, 80, 3))  # checks its own invariants
    check_mask(episode, engine, budget)
    check_texts(episode, codec)
    searched = [s for s in episode.segments if s.source is Source.MODEL and "</search>" in s.text]
    asked = [query for query in map(reference_query, (s.text for s in searched)) if query]
    assert queries == asked[: len(queries)]
    # Every segment but the last closed a search; a search that got no result is what ended the episode.
    assert all("</search>" in s.text for s in episode.segments[:-1] if s.source is Source.MODEL)
    if episode.end_reason is EndReason.EOS:
        assert episode.response_ids[-1] == tokenizer.eos_token_id
    else:
        assert episode.end_reason in (EndReason.LENGTH, EndReason.SEARCH_LIMIT)


def check_mask(episode: Episode, engine: Engine, budget: int) -> None:
    masked = list(zip(episode.response_ids, episode.loss_mask, episode.log_probs, strict=True))
    assert [token_id for token_id, mask, _ in masked if mask] == engine.sampled
    assert all((log_prob == 0.0) == (mask == 0) for _, mask, log_prob in masked)
    assert len(masked) <= budget


def check_texts(episode: Episode, codec: EpisodeCodec) -> None:
    for segment in episode.segments:
        ids = list(segment.token_ids)
        decoded = codec.tokenizer.decode(ids[:-1] if codec.ends_sequence(ids) else ids, skip_special_tokens=False)
        if segment.source is Source.MODEL:
            assert segment.text == decoded
        else:
            assert not set(ids) & (set(codec.control_ids))
            assert codec.dialect.pattern.findall(decoded) == ["<result>", "</result>"]
            assert len(ids) <= 80


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(passages=PASSAGES)
def test_a_spliced_text_comes_back_from_its_ids(tokenizers: dict[str, Any], kind: str, passages: list[str]):
    codec = EpisodeCodec(tokenizers[kind], [tokenizers[kind].eos_token_id])
    documents = [Document(str(number), passage) for number, passage in enumerate(passages)]
    spliced = fit_result(documents, codec.encode_text, 100_000, codec.control_strings)
    assert spliced is not None
    decoded = codec.tokenizer.decode(spliced.token_ids, skip_special_tokens=False)
    # Qwen2's tokenizer composes characters, Llama's writes its own sign for a space as one.
    assert decoded == (normalize("NFC", spliced.text) if kind == "byte-level" else spliced.text.replace("▁", " "))


def test_each_kind_has_its_boundaries(tokenizers: dict[str, Any]):
    """The streams above cover a stop string inside a token, two tags in one token, and a tag over several tokens."""
    tokens = {kind: tokenizer.convert_ids_to_tokens(range(len(tokenizer))) for kind, tokenizer in tokenizers.items()}
    assert "</search></search>" in tokens["word-level"]
    assert any(token.startswith(">Ċ") for token in tokens["byte-level"])
    assert any("</search>" in token and not token.endswith("</search>") for token in tokens["sentencepiece"])
    for kind in ("byte-level", "sentencepiece"):
        assert len(tokenizers[kind].encode("x</sea rch", add_special_tokens=False)) > 2
