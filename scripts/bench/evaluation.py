"""How fast `research` answers many questions at once: against one after the other, and against the engine alone.

    python scripts/bench/evaluation.py --demo_dir outputs/demo

Starts the model server (vLLM on a CPU) and the retrieval server over the demo's own files. In each round, side by side:
    ours        500 questions, 64 at a time, through ReSearchPipeline and both servers
    sequential  some of them, one after the other, as the published evaluation does
    limit       the very requests that `ours` made to the engine (same prompts, same numbers of tokens), all known
                beforehand, 64 at a time: no search, no waiting for an earlier answer
A first pass that is not measured fills the engine's prefix cache, for all three alike. One JSON line comes last.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import aiohttp
from tqdm import tqdm

from flashrag.client import RetrievalClient
from flashrag.dataset import Question
from flashrag.episode import RESEARCH, Dialect, Generation
from flashrag.errors import exit_on_user_error
from flashrag.generator import GeneratorSettings, load_generator
from flashrag.pipeline import METHODS, PipelineSettings
from flashrag.system.arguments import CommandParser
from flashrag.system.model_server import Engine, ModelServerOptions, model_server
from scripts.bench.demo import add_demo_dir, demo_logs, demo_questions, demo_server, trained_model

CONCURRENCY = 64
MODEL_TOKENS = 640


class Request(NamedTuple):
    """What the engine was asked for: a prompt as ids, and how many tokens it sampled."""

    prompt_ids: list[int]
    sampled: int


class Pass(NamedTuple):
    """One pass over questions: seconds, questions, and how many failed."""

    wall_s: float
    questions: int
    failed: int

    @property
    def per_s(self) -> float:
        return self.questions / self.wall_s


class Bench:
    """The pipeline under test, and what it asked of the engine."""

    def __init__(self, model: Path, model_url: str, search_url: str, concurrency: int) -> None:
        self.model_url = model_url
        self.generator = load_generator(
            GeneratorSettings(
                sgl_remote_url=model_url, generator_model=str(model), generator_max_input_len=MODEL_TOKENS
            )
        )
        settings = PipelineSettings(
            retrieval_topk=2,
            max_result_tokens=160,
            max_response_tokens=384,
            max_searches=4,
            generator_max_input_len=MODEL_TOKENS,
            concurrency=concurrency,
        )
        self.client = RetrievalClient(search_url, top_n=settings.retrieval_topk)
        self.pipeline = METHODS["research"].pipeline(settings, self.client, self.generator)
        self.requests: list[Request] | None = None
        generate = self.generator.generate

        async def recording(token_ids: Sequence[int], max_tokens: int, dialect: Dialect = RESEARCH) -> Generation:
            generation = await generate(token_ids, max_tokens, dialect)
            if self.requests is not None:
                self.requests.append(Request(list(token_ids), len(generation.token_ids)))
            return generation

        self.generator.generate = recording

    async def answer(self, questions: Sequence[Question], concurrency: int) -> Pass:
        queue = iter(questions)
        failed = 0

        async def work() -> None:
            nonlocal failed
            for question in queue:
                try:
                    await self.pipeline.answer(question)
                except Exception as error:  # counted: a bench that hides failures would praise them
                    failed += 1
                    print(f"failed: {question.id}: {error}", file=sys.stderr)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
        return Pass(time.perf_counter() - started, len(questions), failed)

    async def replay(self, requests: Sequence[Request], questions: int, concurrency: int) -> Pass:
        """The engine alone: the recorded requests, sampled to the same lengths."""
        queue = iter(requests)
        url = f"{self.model_url}/v1/completions"
        async with aiohttp.ClientSession() as session:

            async def work() -> None:
                for request in queue:
                    body = {
                        "model": self.generator.served_name,
                        "prompt": request.prompt_ids,
                        "temperature": 0.0,
                        "max_tokens": request.sampled,
                        "min_tokens": request.sampled,
                        "ignore_eos": True,
                        "return_token_ids": True,
                    }
                    async with session.post(url, json=body) as response:
                        response.raise_for_status()
                        await response.read()

            started = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
            return Pass(time.perf_counter() - started, questions, 0)

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.generator.aclose()


async def measure(bench: Bench, questions: Sequence[Question], arguments: argparse.Namespace) -> dict[str, list[Pass]]:
    """Rounds of all three, in turn, so that whatever else the machine does meets each alike."""
    passes: dict[str, list[Pass]] = {"ours": [], "sequential": [], "limit": []}
    bench.requests = []
    few = questions[: arguments.sequential]
    async with contextlib.aclosing(bench):
        with tqdm(total=1 + 3 * arguments.rounds, unit="pass") as bar:
            await bench.answer(questions, arguments.concurrency)
            recorded, bench.requests = bench.requests, None
            bar.update()
            for _ in range(arguments.rounds):
                passes["ours"].append(await bench.answer(questions, arguments.concurrency))
                bar.update()
                passes["limit"].append(await bench.replay(recorded, len(questions), arguments.concurrency))
                bar.update()
                passes["sequential"].append(await bench.answer(few, 1))
                bar.update()
    return passes


def report(passes: dict[str, list[Pass]]) -> dict[str, float]:
    """Print the table; returns the figures of the JSON line (medians over rounds)."""
    per_s = {name: statistics.median(one.per_s for one in rounds) for name, rounds in passes.items()}
    print(f"{'':12}{'questions/s':>12}{'slowest':>10}{'fastest':>10}{'failed':>8}")
    for name, rounds in passes.items():
        rates = [one.per_s for one in rounds]
        failed = sum(one.failed for one in rounds)
        print(f"{name:12}{per_s[name]:12.2f}{min(rates):10.2f}{max(rates):10.2f}{failed:8}")
    return {
        "ours_over_sequential": round(per_s["ours"] / per_s["sequential"], 2),
        "ours_over_limit": round(per_s["ours"] / per_s["limit"], 3),
        **{f"{name}_per_s": round(rate, 2) for name, rate in per_s.items()},
        "failed": sum(one.failed for rounds in passes.values() for one in rounds),
    }


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description="Throughput of the evaluation.")
    add_demo_dir(parser)
    add = parser.add_argument
    add("--model_path", type=Path, help="default: the demo's last trained model")
    add("--questions", type=int, default=500, help="default %(default)s")
    add("--sequential", type=int, default=60, help="questions asked one after the other, default %(default)s")
    add("--concurrency", type=int, default=CONCURRENCY, help="default %(default)s")
    add("--rounds", type=int, default=3, help="default %(default)s")
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_args(argv)
    questions = demo_questions(arguments.demo_dir, arguments.questions)
    model = arguments.model_path or trained_model(arguments.demo_dir)
    log_path = demo_logs(arguments.demo_dir) / "bench_model_server.log"
    options = ModelServerOptions(model, Engine.VLLM, context_length=MODEL_TOKENS, log_path=log_path)
    with demo_server(arguments.demo_dir) as retrieval, model_server(options) as (model_url, _):
        bench = Bench(model, model_url, retrieval.url, arguments.concurrency)
        figures = report(asyncio.run(measure(bench, questions, arguments)))
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
