"""Episodes that are known beforehand, to the token: sampled tokens, queries, results, and the time of each search.

Lengths and latencies are drawn from a seed; the words come from the corpus, and mean nothing. `ForcedTokens` makes vLLM
sample them: its work is real, and ways of driving it can be compared on the same tokens.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from flashrag.client import RetrievalClient
from flashrag.document import Hit
from flashrag.episode import EpisodeCodec, fit_result, prompt_token_ids

MAX_SEARCHES = 4
TOP_N = 2
MAX_RESULT_TOKENS = 160
# With its tags and its query a turn has about 29 tokens; the demo's trained model takes 26.
MEDIAN_THINK_TOKENS = 4
THINK_SIGMA = 0.5
MEDIAN_WAIT_S = 0.1
P99_WAIT_S = 1.0
WAIT_SIGMA = math.log(P99_WAIT_S / MEDIAN_WAIT_S) / NormalDist().inv_cdf(0.99)
FORCED = "forced_ids"  # the key in `SamplingParams.extra_args` of the tokens that a request samples


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
    rng = random.Random(seed)

    def title() -> str:
        return rng.choice(passages).partition("\n")[0]

    def thought_and(written: str) -> list[int]:
        length = max(1, round(rng.lognormvariate(math.log(MEDIAN_THINK_TOKENS), THINK_SIGMA)))
        thought: list[int] = []
        while len(thought) < length:
            thought += codec.encode_text(rng.choice(passages))
        return [*codec.encode_text(" <think> "), *thought[:length], *codec.encode_text(f" </think> {written}")]

    def search(query: str, hits: Sequence[Hit]) -> Turn:
        documents, wait_s = [hit.document for hit in hits], rng.lognormvariate(math.log(MEDIAN_WAIT_S), WAIT_SIGMA)
        spliced = fit_result(documents, codec.encode_text, MAX_RESULT_TOKENS, codec.control_strings)
        assert spliced is not None, "a result's tags fit into its budget"
        sampled_ids = thought_and(f"<search> {query} </search>")
        return Turn(sampled_ids, query, tuple(hits), tuple(spliced.token_ids), wait_s)

    def answer() -> Turn:
        written = rf"<answer> The final answer is \[ \boxed{{{title()}}} \] </answer>"
        return Turn([*thought_and(written), min(codec.eos_token_ids)])

    # A query is a passage's title and a number: never the same twice.
    numbers = itertools.count(1)
    queries = [[f"{title()} {next(numbers)}" for _ in range(rng.randint(0, MAX_SEARCHES))] for _ in questions]
    found = iter(await client.batch_search([query for some in queries for query in some], TOP_N))
    turns = [[*(search(query, next(found)) for query in some), answer()] for some in queries]
    prompts = [prompt_token_ids(codec.tokenizer, question) for question in questions]
    return list(map(Transcript, questions, prompts, turns))


class _Row(NamedTuple):
    """A request in the batch: the tokens to sample, and those sampled so far (a list that vLLM appends to)."""

    forced_ids: list[int]
    sampled_ids: list[int]


class ForcedTokens(LogitsProcessor):
    """Leaves a request with `FORCED` tokens no choice; vLLM loads it by its name in the process that computes."""

    def __init__(self, *_: Any):
        self.rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        def row(params: SamplingParams, _: list[int] | None, sampled_ids: list[int]) -> _Row | None:
            forced_ids = (params.extra_args or {}).get(FORCED)
            return _Row(forced_ids, sampled_ids) if forced_ids else None

        process_dict_updates(self.rows, batch_update, row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.rows:
            # The engine may compute one token after the last, before it learns that the request has ended: any will do.
            next_ids = [ids[min(len(sampled_ids), len(ids) - 1)] for ids, sampled_ids in self.rows.values()]
            indices = torch.tensor(list(self.rows))
            logits[indices] = float("-inf")
            logits[indices, torch.tensor(next_ids)] = 0.0
        return logits
