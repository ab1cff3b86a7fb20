"""How fast a step's rollouts are: against the engine alone, and against the ways that wait.

    python scripts/bench/rollout.py --demo_dir outputs/demo

1,024 trajectories of 0 to 4 searches are written beforehand, and one vLLM engine on a CPU, 64 sequences at once,
samples exactly these tokens (transcripts.py). In each round every way (a method of `Rollouts`) brings them to their
end, each from an empty cache. Before that, the cost of our own Python: 256 trajectories at once, with the real server
and an engine that takes no time. One JSON line comes last.
"""

import asyncio
import contextlib
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.workers.rollout.replica import TokenOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from flashrag.client import RetrievalClient
from flashrag.corpus import read_lines
from flashrag.document import Hit
from flashrag.episode import EpisodeCodec
from flashrag.errors import exit_on_user_error
from flashrag.generator import check_model_folder, eos_token_ids
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.engine import (
    CACHE_BLOCK_TOKENS,
    CPU_SEQUENCES,
    ONE_PROCESS_EXECUTOR,
    ModelServerOptions,
    cpu_cache_bytes,
    vllm_environment,
)
from scripts.bench.inputs import DemoOptions
from scripts.bench.report import paired_rounds, print_report, ratios
from scripts.bench.servers import our_server
from scripts.bench.transcripts import FORCED, TOP_N, ForcedTokens, Transcript, Turn, write_transcripts
from verl_search.composition import compose_config
from verl_search.rollout.agent_loop import SearchAgentLoop

MODEL_TOKENS = 2048
RESPONSE_TOKENS = 1700
GROUP_SIZE = 8  # trajectories that share a prompt, as in training
PYTHON_CONCURRENCY = 256
TARGETS = {"ours_over_limit": ">= 0.85", "ours_over_sequential": ">= 10", "ours_over_turn_sync": ">= 1.4"}
TARGETS |= {"python_ms_per_turn": "<= 1"}


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(DemoOptions):
    """Measure how many tokens per second a step's rollouts sample."""

    trajectories: int = flag("number of trajectories, eight per question", 1024, type=in_range(int, 1))
    sequential: int = flag("number of them that are run one after the other too", 24, type=in_range(int, 1))
    rounds: int = flag("number of rounds; figures are medians over them", 5, type=in_range(int, 1))
    seed: int = flag("seed of lengths, latencies and words", 0)


class Engine:
    """vLLM in this process and the one that it starts, as verl runs it."""

    def __init__(self, model: Path):
        os.environ.update(vllm_environment())
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(
            model=str(model), dtype="float32", enforce_eager=True,
            max_num_seqs=CPU_SEQUENCES, max_model_len=MODEL_TOKENS,
            kv_cache_memory_bytes=cpu_cache_bytes(ModelServerOptions(model, context_length=MODEL_TOKENS)),
            distributed_executor_backend=ONE_PROCESS_EXECUTOR, block_size=CACHE_BLOCK_TOKENS,
            logits_processors=[f"{ForcedTokens.__module__}:{ForcedTokens.__name__}"],
        ))  # fmt: skip

    async def sample(self, prompt_ids: list[int], sampled_ids: list[int], **params: Any) -> TokenOutput:
        """Sample `sampled_ids` after `prompt_ids`; `params` are vLLM's."""
        # One message per request instead of one per token, as an episode asks for: every way has the same engine.
        params = {"output_kind": RequestOutputKind.FINAL_ONLY, **params, "extra_args": {FORCED: sampled_ids}}
        request = {"prompt_token_ids": prompt_ids}, SamplingParams(**params), uuid4().hex
        outputs = [output async for output in self.llm.generate(*request)]
        (done,) = outputs[-1].outputs
        log_probs = [by_id[token].logprob for token, by_id in zip(done.token_ids, done.logprobs, strict=True)]
        return TokenOutput(token_ids=done.token_ids, log_probs=log_probs, stop_reason="completed")

    def close(self) -> None:
        self.llm.shutdown()


async def sample_at_once(_: list[int], sampled_ids: list[int], **__: Any) -> TokenOutput:
    """In place of `Engine.sample`, takes no time: what is left is our own Python and the search."""
    await asyncio.sleep(0)
    return TokenOutput(token_ids=sampled_ids, log_probs=[-0.5] * len(sampled_ids), stop_reason="completed")


@dataclass(frozen=True)
class Rollouts:
    """The ways to bring transcripts to their end on one engine."""

    sample: Callable[..., Awaitable[TokenOutput]]
    config: Any
    tokenizer: Any

    async def limit(self, transcripts: Sequence[Transcript]) -> None:
        """The engine alone: each trajectory's turns one after the other, with results known beforehand."""
        await asyncio.gather(*(self.turn_sync([transcript], waits=False) for transcript in transcripts))

    async def sequential(self, transcripts: Sequence[Transcript]) -> None:
        """One trajectory and one call at a time, as the pilot did."""
        for transcript in transcripts:
            await self.turn_sync([transcript])

    async def turn_sync(self, transcripts: Sequence[Transcript], *, waits: bool = True) -> None:
        """All sample their next turn, all search and wait for the slowest, all go on, as a batch of chat turns does."""
        ids = [[*transcript.prompt_ids] for transcript in transcripts]
        for turns in itertools.zip_longest(*(transcript.turns for transcript in transcripts)):
            asked = [(so_far, turn) for so_far, turn in zip(ids, turns, strict=True) if turn]
            await asyncio.gather(*(self._sample(so_far, turn) for so_far, turn in asked))
            if waits:
                await asyncio.sleep(max(turn.wait_s for _, turn in asked))

    async def _sample(self, ids: list[int], turn: Turn) -> None:
        """Sample one turn after `ids`, which grow by it and its result."""
        length = len(turn.sampled_ids)
        sampled = await self.sample([*ids], turn.sampled_ids, max_tokens=length, ignore_eos=True, logprobs=0)
        assert list(sampled.token_ids) == turn.sampled_ids, "the engine samples the tokens that it is given"
        ids += [*turn.sampled_ids, *turn.spliced_ids]

    async def ours(self, transcripts: Sequence[Transcript], client: RetrievalClient | None = None) -> None:
        """SearchAgentLoop, all at once, with a real client, or with the results and latencies that were drawn."""

        async def follow(number: int, transcript: Transcript) -> None:
            scripted = _Scripted(self.sample, transcript)
            loop = SearchAgentLoop(
                trainer_config=DictConfigWrap(self.config), data_config=DictConfigWrap(self.config.data),
                server_manager=scripted, client=client or scripted,
                tokenizer=self.tokenizer, processor=None, dataset_cls=None,
            )  # fmt: skip
            row = {  # of a dataset, as verl's agent-loop worker passes it on
                "raw_prompt": [{"role": "user", "content": transcript.question}],
                "reward_model": {"ground_truth": ["an answer that no transcript gives"]},
                "extra_info": {"id": f"question_{number}"}, "data_source": "bench", "index": number, "uid": str(number),
                "split": "train", "global_steps": 1, "session_id": 0,
            }  # fmt: skip
            output = await loop.run({"temperature": 1.0, "logprobs": True}, **row)
            assert output.response_ids == transcript.response_ids, "every way has the same tokens"

        await asyncio.gather(*(follow(number, transcript) for number, transcript in enumerate(transcripts)))


class _Scripted:
    """The rollout servers and the retrieval client of one episode, which follow its transcript."""

    def __init__(self, sample: Callable[..., Awaitable[TokenOutput]], transcript: Transcript):
        self._sample, self._turns = sample, iter(transcript.turns)

    async def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        self._turn = next(self._turns)
        params = {**sampling_params, "logprobs": 0 if sampling_params["logprobs"] else None}
        return await self._sample(prompt_ids, self._turn.sampled_ids, **params)

    async def search_scored(self, query: str) -> Sequence[Hit]:
        assert query == self._turn.query, "the loop asks what the transcript says"
        await asyncio.sleep(self._turn.wait_s)
        return self._turn.hits


def rollout_config(url: str, model: Path, folder: Path) -> Any:
    """The demo's training config, with room for a whole transcript."""
    search = [f"search.url={url}", f"search.top_n={TOP_N}", f"search.trajectory_dir='{folder}'"]
    lengths, path = f"data.max_response_length={RESPONSE_TOKENS}", f"actor_rollout_ref.model.path='{model}'"
    return compose_config("demo", [*search, lengths, path])


def measure(options: RolloutOptions, url: str) -> tuple[dict[str, list[float]], list[float]]:
    """Sampled tokens per second of each way, and milliseconds of our own Python per turn, in each round."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    codec = EpisodeCodec(tokenizer, eos_token_ids(tokenizer, str(options.model)))
    groups = options.first_questions(math.ceil(options.trajectories / GROUP_SIZE))
    questions = [group.question for group in groups for _ in range(GROUP_SIZE)][: options.trajectories]
    passages = [line.contents for _, line in read_lines(options.demo_dir / "data" / "demo" / "corpus.jsonl")]
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        config, client = rollout_config(url, options.model, Path(folder)), RetrievalClient(url, top_n=TOP_N)
        transcripts = runner.run(write_transcripts(questions, passages, codec, client, options.seed))
        some, few = transcripts[:PYTHON_CONCURRENCY], transcripts[: options.sequential]
        python = Rollouts(sample_at_once, config, tokenizer)

        def python_ms() -> float:
            before = time.process_time()
            runner.run(python.ours(some, client))
            return (time.process_time() - before) * 1000 / sum(len(transcript.turns) for transcript in some)

        python_rounds_ms = [python_ms() for _ in range(1 + options.rounds)][1:]  # the first round warms up

        async def start() -> Engine:  # vLLM's tasks belong to the loop that runs when it is made
            return Engine(options.model)

        with contextlib.closing(runner.run(start())) as engine:
            ways = Rollouts(engine.sample, config, tokenizer)
            runner.run(ways.limit(some))

            def rate(way: Coroutine, followed: Sequence[Transcript] = transcripts) -> float:
                runner.run(engine.llm.reset_prefix_cache())
                started = time.perf_counter()
                runner.run(way)
                return sum(transcript.sampled_tokens for transcript in followed) / (time.perf_counter() - started)

            rates = paired_rounds("rollouts", range(options.rounds), {
                "limit": lambda _: rate(ways.limit(transcripts)),
                "ours": lambda _: rate(ways.ours(transcripts)),
                "server": lambda _: rate(ways.ours(transcripts, client)),
                "turn_sync": lambda _: rate(ways.turn_sync(transcripts)),
                "sequential": lambda _: rate(ways.sequential(few), few),
            })  # fmt: skip
        runner.run(client.aclose())
    return rates, python_rounds_ms


def figures(rates: Mapping[str, Sequence[float]], python_ms: Sequence[float]) -> dict[str, Any]:
    """The ways over each other; no way can gain more over `turn_sync` than `limit`, which never waits."""
    ours = (("ours", "limit"), ("ours", "sequential"), ("ours", "turn_sync"))
    return {**ratios(rates, *ours, ("server", "limit"), ("limit", "turn_sync")), "python_ms_per_turn": python_ms}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(RolloutOptions, "python scripts/bench/rollout.py", argv)
    check_model_folder(options.model, "--model_path")
    with our_server(options.serving_config, options.logs) as retrieval:
        rates, python_ms = measure(options, retrieval.url)
    rounds = {f"{way}, sampled tokens/s": per_s for way, per_s in rates.items()}
    print_report(figures(rates, python_ms), TARGETS, **rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
