"""How fast a step's rollouts are: against the engine alone, and against the ways that wait.

    python scripts/bench/rollout.py --demo_dir outputs/demo

1,024 trajectories of 0 to 4 searches are written beforehand (transcripts.py), and one vLLM engine on a CPU, 64
sequences at once, is made to sample just these tokens (forced_tokens.py). In each round, side by side:
    limit       each trajectory's turns one after the other, every result known beforehand: nothing to wait for
    ours        SearchAgentLoop, all trajectories at once; searches take as long as was drawn (median 100 ms, p99 1 s)
    server      the same with the real retrieval client and server, which share the machine
    turn_sync   all sample, all search and wait for the slowest, all sample again, as a batch of chat turns does
    sequential  some of them, one trajectory and one call at a time, as the pilot did
Before that, what our own Python costs: 256 trajectories at once, with the real server and an engine that takes no time.
One JSON line comes last.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tqdm import tqdm
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap

from flashrag.client import RetrievalClient
from flashrag.corpus import read_lines
from flashrag.document import Hit
from flashrag.episode import EpisodeCodec
from flashrag.errors import exit_on_user_error
from flashrag.generator import check_model_folder, eos_token_ids
from flashrag.system.arguments import CommandParser
from flashrag.system.model_server import CACHE_BLOCK_TOKENS, ONE_PROCESS_EXECUTOR, vllm_environment
from scripts.bench.demo import add_demo_dir, demo_questions, demo_server, trained_model
from scripts.bench.forced_tokens import forced
from scripts.bench.transcripts import MAX_SEARCHES, TOP_N, Transcript, Turn, write_transcripts
from verl_search.rollout.agent_loop import SearchAgentLoop
from verl_search.settings import compose_config

MAX_SEQUENCES = 64
MODEL_TOKENS = 2048
RESPONSE_TOKENS = 1700
GROUP_SIZE = 8  # trajectories that share a prompt, as in training
PYTHON_CONCURRENCY = 256


class Sampled(NamedTuple):
    """What verl's rollout servers answer, as far as an episode reads it."""

    token_ids: Sequence[int]
    log_probs: Sequence[float]
    stop_reason: str
    extra_fields: dict[str, Any]


class Sampler(Protocol):
    """Samples the next tokens of a transcript; `params` are vLLM's."""

    async def sample(self, prompt_ids: list[int], sampled_ids: list[int], **params: Any) -> Sampled: ...

    async def forget(self) -> None:
        """Let the next way begin with nothing cached."""


class Engine:
    """vLLM in this process and the one that it starts, as verl runs it; sampling what it is told to."""

    def __init__(self, model: Path):
        os.environ.update(vllm_environment())
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        # One message per request instead of one per token, as an episode asks for: whoever asks has the same engine.
        self._params = partial(SamplingParams, output_kind=RequestOutputKind.FINAL_ONLY)
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(model),
                dtype="float32",
                enforce_eager=True,
                max_num_seqs=MAX_SEQUENCES,
                max_model_len=MODEL_TOKENS,
                distributed_executor_backend=ONE_PROCESS_EXECUTOR,
                block_size=CACHE_BLOCK_TOKENS,
                logits_processors=["scripts.bench.forced_tokens:ForcedTokens"],
            )
        )

    async def sample(self, prompt_ids: list[int], sampled_ids: list[int], **params: Any) -> Sampled:
        sampling = self._params(extra_args=forced(sampled_ids), **params)
        outputs = [o async for o in self._llm.generate({"prompt_token_ids": prompt_ids}, sampling, uuid4().hex)]
        (completion,) = outputs[-1].outputs
        log_probs = [
            values[token].logprob for token, values in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
        return Sampled(completion.token_ids, log_probs, "completed", {})

    async def forget(self) -> None:
        await self._llm.reset_prefix_cache()

    def close(self) -> None:
        self._llm.shutdown()


class NoEngine:
    """Takes no time: what is left is our own Python and the search."""

    async def sample(self, prompt_ids: list[int], sampled_ids: list[int], **params: Any) -> Sampled:
        del prompt_ids, params
        await asyncio.sleep(0)
        return Sampled(sampled_ids, [-0.5] * len(sampled_ids), "completed", {})

    async def forget(self) -> None:
        pass


class Rollouts:
    """The ways to bring transcripts to their end on one engine."""

    def __init__(self, engine: Sampler, config: Any, tokenizer: Any):
        self.engine, self.config, self.tokenizer = engine, config, tokenizer

    async def limit(self, transcripts: Sequence[Transcript]) -> None:
        """The engine alone."""

        async def follow(transcript: Transcript) -> None:
            ids = [*transcript.prompt_ids]
            for turn in transcript.turns:
                await self._sample(ids, turn)
                ids += [*turn.sampled_ids, *turn.spliced_ids]

        await asyncio.gather(*map(follow, transcripts))

    async def sequential(self, transcripts: Sequence[Transcript]) -> None:
        """One trajectory and one call at a time."""
        for transcript in transcripts:
            ids = [*transcript.prompt_ids]
            for turn in transcript.turns:
                await self._sample(ids, turn)
                ids += [*turn.sampled_ids, *turn.spliced_ids]
                await asyncio.sleep(turn.wait_s)

    async def turn_sync(self, transcripts: Sequence[Transcript]) -> None:
        """All sample their next turn, then all search, then all go on."""
        ids = [[*transcript.prompt_ids] for transcript in transcripts]
        for number in range(MAX_SEARCHES + 1):
            turns = [(ids[i], t.turns[number]) for i, t in enumerate(transcripts) if number < len(t.turns)]
            await asyncio.gather(*(self._sample(so_far, turn) for so_far, turn in turns))
            await asyncio.gather(*(asyncio.sleep(turn.wait_s) for _, turn in turns))
            for so_far, turn in turns:
                so_far += [*turn.sampled_ids, *turn.spliced_ids]

    async def _sample(self, ids: list[int], turn: Turn) -> None:
        sampled = await self.engine.sample(
            [*ids], turn.sampled_ids, max_tokens=len(turn.sampled_ids), ignore_eos=True, logprobs=0
        )
        assert list(sampled.token_ids) == turn.sampled_ids, "the engine samples what it is told to"

    async def ours(self, transcripts: Sequence[Transcript], client: RetrievalClient | None = None) -> None:
        """SearchAgentLoop, with the latencies that were drawn, or with a real client."""
        asked = client or _Drawn(transcripts)

        async def follow(number: int, transcript: Transcript) -> None:
            loop = SearchAgentLoop(
                trainer_config=DictConfigWrap(self.config),
                server_manager=_Turns(self.engine, transcript),
                tokenizer=self.tokenizer,
                processor=None,
                dataset_cls=None,
                data_config=DictConfigWrap(self.config.data),
                client=asked,
            )
            output = await loop.run({"temperature": 1.0, "logprobs": True}, **_row(number, transcript))
            assert output.response_ids == transcript.response_ids, "every way has the same tokens"

        await asyncio.gather(*(follow(number, transcript) for number, transcript in enumerate(transcripts)))


class _Turns:
    """The engine as one episode's rollout servers: each request is the transcript's next turn."""

    def __init__(self, engine: Sampler, transcript: Transcript):
        self._engine, self._turns = engine, iter(transcript.turns)

    async def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> Sampled:
        params = {**sampling_params, "logprobs": 0 if sampling_params["logprobs"] else None}
        return await self._engine.sample(prompt_ids, next(self._turns).sampled_ids, **params)


class _Drawn:
    """A retrieval client whose answers and latencies are the transcripts'."""

    def __init__(self, transcripts: Sequence[Transcript]):
        self._turns = {turn.query: turn for transcript in transcripts for turn in transcript.turns}

    async def search_scored(self, query: str) -> Sequence[Hit]:
        turn = self._turns[query]
        await asyncio.sleep(turn.wait_s)
        return turn.hits


def _row(number: int, transcript: Transcript) -> dict[str, Any]:
    """A dataset row as verl's agent-loop worker hands it on."""
    return {
        "raw_prompt": [{"role": "user", "content": transcript.question}],
        "reward_model": {"ground_truth": ["nothing that is ever answered"]},
        "extra_info": {"id": f"question_{number}"},
        "index": number,
        "data_source": "bench",
        "global_steps": 1,
        "split": "train",
        "uid": str(number),
        "session_id": 0,
    }


class Round(NamedTuple):
    """Sampled tokens a second of each way, measured one after the other."""

    limit: float
    ours: float
    server: float
    turn_sync: float
    sequential: float


async def measure_round(
    rollouts: Rollouts, client: RetrievalClient, transcripts: Sequence[Transcript], few: int
) -> Round:
    """One pass of each way, each from an empty cache."""

    async def rate(way: Callable[..., Awaitable[None]], some: Sequence[Transcript], *more: Any) -> float:
        await rollouts.engine.forget()
        started = time.perf_counter()
        await way(some, *more)
        return sum(transcript.sampled_tokens for transcript in some) / (time.perf_counter() - started)

    return Round(
        limit=await rate(rollouts.limit, transcripts),
        ours=await rate(rollouts.ours, transcripts),
        server=await rate(rollouts.ours, transcripts, client),
        turn_sync=await rate(rollouts.turn_sync, transcripts),
        sequential=await rate(rollouts.sequential, transcripts[:few]),
    )


async def python_ms_per_turn(rollouts: Rollouts, client: RetrievalClient, transcripts: Sequence[Transcript]) -> float:
    """Processor time of this process for a turn of `SearchAgentLoop`, all trajectories at once."""
    before = time.process_time()
    await rollouts.ours(transcripts, client)
    turns = sum(len(transcript.turns) for transcript in transcripts)
    return (time.process_time() - before) * 1000 / turns


def report(rounds: Sequence[Round], python_ms: Sequence[float]) -> dict[str, float]:
    """Print the table; returns the figures of the JSON line: medians over rounds, of ratios within a round."""
    print(f"{'':12}{'sampled tokens/s':>18}{'slowest':>10}{'fastest':>10}")
    for name in Round._fields:
        rates = [getattr(one, name) for one in rounds]
        print(f"{name:12}{statistics.median(rates):18.0f}{min(rates):10.0f}{max(rates):10.0f}")
    print(f"our Python a turn: {statistics.median(python_ms):.2f} ms ({min(python_ms):.2f} to {max(python_ms):.2f})")
    return {
        **{f"ours_over_{way}": _ratio(rounds, "ours", way) for way in ("limit", "sequential", "turn_sync")},
        "server_over_limit": _ratio(rounds, "server", "limit"),
        # What a way that waits for nothing would gain: no other can gain more.
        "limit_over_turn_sync": _ratio(rounds, "limit", "turn_sync"),
        "python_ms_per_turn": round(statistics.median(python_ms), 3),
    }


def _ratio(rounds: Sequence[Round], way: str, other: str) -> float:
    return round(statistics.median(getattr(one, way) / getattr(one, other) for one in rounds), 3)


def rollout_config(url: str, model: Path, folder: Path) -> Any:
    """The demo's training config, with room for a whole transcript."""
    overrides = {
        "search.url": url,
        "search.top_n": TOP_N,
        "search.trajectory_dir": f"'{folder}'",
        "data.max_response_length": RESPONSE_TOKENS,
        "actor_rollout_ref.model.path": f"'{model}'",
    }
    return compose_config("demo", [f"{key}={value}" for key, value in overrides.items()])


async def measure(model: Path, url: str, arguments: argparse.Namespace) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    codec = EpisodeCodec(tokenizer, eos_token_ids(tokenizer, str(model)))
    groups = demo_questions(arguments.demo_dir, math.ceil(arguments.trajectories / GROUP_SIZE))
    questions = [group.question for group in groups for _ in range(GROUP_SIZE)][: arguments.trajectories]
    corpus = arguments.demo_dir / "data" / "demo" / "corpus.jsonl"
    passages = [contents for _, contents in read_lines(corpus)]
    with tempfile.TemporaryDirectory() as folder:
        config = rollout_config(url, model, Path(folder))
        async with RetrievalClient(url, top_n=TOP_N) as client:
            transcripts = await write_transcripts(questions, passages, codec, client, arguments.seed)
            python = Rollouts(NoEngine(), config, tokenizer)
            some = transcripts[:PYTHON_CONCURRENCY]
            python_ms = [await python_ms_per_turn(python, client, some) for _ in range(1 + arguments.rounds)][1:]
            with contextlib.closing(Engine(model)) as engine:
                rollouts = Rollouts(engine, config, tokenizer)
                await rollouts.limit(some)
                rounds = [
                    await measure_round(rollouts, client, transcripts, arguments.sequential)
                    for _ in tqdm(range(arguments.rounds), unit="round")
                ]
    return report(rounds, python_ms)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description="Throughput of a step's rollouts.")
    add_demo_dir(parser)
    add = parser.add_argument
    add("--model_path", type=Path, help="default: the demo's last trained model")
    add("--trajectories", type=int, default=1024, help="default %(default)s")
    add("--sequential", type=int, default=24, help="trajectories one after the other, default %(default)s")
    add("--rounds", type=int, default=5, help="default %(default)s")
    add("--seed", type=int, default=0, help="of lengths, latencies and words, default %(default)s")
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_args(argv)
    model = arguments.model_path or trained_model(arguments.demo_dir)
    check_model_folder(model, "--model_path")
    with demo_server(arguments.demo_dir) as retrieval:
        figures = asyncio.run(measure(model, retrieval.url, arguments))
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
