"""Episodes that are known beforehand, to the token: sampled tokens, queries, results, and the time of each search.

Lengths and latencies are drawn from a seed; the words come from the corpus, and mean nothing.
"""

import itertools
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
WAIT_SIGMA = math.log(P99_WAIT_S / MEDIAN_WAIT_S) / NormalDist().inv_cdf(0.99)


@dataclass(frozen=True)
class Turn:
    """The tokens that the model samples, and the search and result that follow; the last turn has no search."""

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
    """0 to `MAX_SEARCHES` searches for each question, with the retrieval server's results."""
    random = np.random.default_rng(seed)

    def passage() -> str:
        return passages[int(random.integers(len(passages)))]

    def title() -> str:
        return passage().partition("\n")[0]

    def lognormal(median: float, sigma: float) -> float:
        return float(random.lognormal(math.log(median), sigma))

    def thought_and(written: str) -> list[int]:
        count = min(MAX_THINK_TOKENS, max(1, round(lognormal(MEDIAN_THINK_TOKENS, THINK_SIGMA))))
        thought: list[int] = []
        while len(thought) < count:
            thought += codec.encode_text(passage())
        return [*codec.encode_text(" <think> "), *thought[:count], *codec.encode_text(f" </think> {written}")]

    def search(query: str, hits: Sequence[Hit]) -> Turn:
        documents, wait_s = [hit.document for hit in hits], lognormal(MEDIAN_WAIT_S, WAIT_SIGMA)
        spliced = fit_result(documents, codec.encode_text, MAX_RESULT_TOKENS, codec.special_tokens)
        assert spliced is not None, "a result's tags fit into its budget"
        sampled_ids = thought_and(f"<search> {query} </search>")
        return Turn(sampled_ids, query, tuple(hits), tuple(spliced.token_ids), wait_s)

    def answer() -> Turn:
        written = rf"<answer> The final answer is \[ \boxed{{{title()}}} \] </answer>"
        return Turn([*thought_and(written), min(codec.eos_token_ids)])

    # A query is a passage's title and a number: never the same twice.
    numbers = itertools.count(1)
    queries = [[f"{title()} {next(numbers)}" for _ in range(random.integers(MAX_SEARCHES + 1))] for _ in questions]
    found = iter(await client.batch_search([query for some in queries for query in some], TOP_N))
    turns = [[*(search(query, next(found)) for query in some), answer()] for some in queries]
    prompts = [prompt_token_ids(codec.tokenizer, question) for question in questions]
    return list(map(Transcript, questions, prompts, turns))
