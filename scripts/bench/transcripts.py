"""Episodes that are known beforehand, to the token: what is sampled, what is asked, what is found, how long that takes.

Lengths and latencies are drawn from a seed; the words come from the corpus, and mean nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from flashrag.client import RetrievalClient
from flashrag.document import Hit
from flashrag.episode import EpisodeCodec, fit_result, prompt_token_ids

MAX_SEARCHES = 4
TOP_N = 2
MAX_RESULT_TOKENS = 160
# With its tags and its query a turn has about 29 tokens; the demo's trained model takes 26.
MEDIAN_THINK_TOKENS = 4
THINK_SIGMA = 0.5
MAX_THINK_TOKENS = 160
MEDIAN_WAIT_S = 0.1
P99_WAIT_S = 1.0


@dataclass(frozen=True)
class Turn:
    """What the model samples, and what a search then splices in; the last turn ends with no search."""

    sampled_ids: list[int]
    query: str = ""
    hits: tuple[Hit, ...] = ()
    spliced_ids: tuple[int, ...] = ()
    wait_s: float = 0.0


@dataclass(frozen=True)
class Transcript:
    question: str
    prompt_ids: list[int]
    turns: list[Turn]

    @property
    def sampled_tokens(self) -> int:
        return sum(len(turn.sampled_ids) for turn in self.turns)

    @property
    def response_ids(self) -> list[int]:
        return [token for turn in self.turns for token in (*turn.sampled_ids, *turn.spliced_ids)]


async def write_transcripts(
    questions: Sequence[str], passages: Sequence[str], codec: EpisodeCodec, client: RetrievalClient, seed: int
) -> list[Transcript]:
    """One of 0 to `MAX_SEARCHES` searches for each question; what they find, the retrieval server says."""
    draw = _Draw(passages, codec, np.random.default_rng(seed))
    queries = [[draw.query() for _ in range(draw.searches())] for _ in questions]
    found = iter(await client.batch_search([query for some in queries for query in some], TOP_N))
    return [
        Transcript(
            question,
            prompt_token_ids(codec.tokenizer, question),
            [*(draw.search(query, next(found)) for query in some), draw.answer()],
        )
        for question, some in zip(questions, queries, strict=True)
    ]


class _Draw:
    """Whatever is drawn at random, in one order."""

    def __init__(self, passages: Sequence[str], codec: EpisodeCodec, generator: np.random.Generator):
        self.passages, self.codec, self.generator = passages, codec, generator
        self.queries = 0

    def searches(self) -> int:
        return int(self.generator.integers(MAX_SEARCHES + 1))

    def query(self) -> str:
        """A passage's title and a number: never the same twice."""
        title, _, _ = self._passage().partition("\n")
        self.queries += 1
        return f"{title} {self.queries}"

    def search(self, query: str, hits: Sequence[Hit]) -> Turn:
        codec = self.codec
        spliced = fit_result([hit.document for hit in hits], codec.encode_text, MAX_RESULT_TOKENS, codec.special_tokens)
        assert spliced is not None, "a result's tags fit into its budget"
        wait_s = self._lognormal(MEDIAN_WAIT_S, math.log(P99_WAIT_S / MEDIAN_WAIT_S) / NormalDist().inv_cdf(0.99))
        sampled_ids = self._thought_and(f"<search> {query} </search>")
        return Turn(sampled_ids, query, tuple(hits), tuple(spliced.token_ids), wait_s)

    def answer(self) -> Turn:
        title, _, _ = self._passage().partition("\n")
        written = rf"<answer> The final answer is \[ \boxed{{{title}}} \] </answer>"
        return Turn([*self._thought_and(written), min(self.codec.eos_token_ids)])

    def _thought_and(self, written: str) -> list[int]:
        count = min(MAX_THINK_TOKENS, max(1, round(self._lognormal(MEDIAN_THINK_TOKENS, THINK_SIGMA))))
        encode = self.codec.encode_text
        thought: list[int] = []
        while len(thought) < count:
            thought += encode(self._passage())
        return [*encode(" <think> "), *thought[:count], *encode(f" </think> {written}")]

    def _passage(self) -> str:
        return self.passages[int(self.generator.integers(len(self.passages)))]

    def _lognormal(self, median: float, sigma: float) -> float:
        return float(self.generator.lognormal(math.log(median), sigma))
