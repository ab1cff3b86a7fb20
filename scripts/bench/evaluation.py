"""How fast `research` answers many questions at once: against one after the other, and against the engine alone.

    python scripts/bench/evaluation.py --demo_dir outputs/demo

Starts the model server (vLLM on a CPU) and the retrieval server over the demo's own files. In each round, side by side:
    ours        500 questions, 64 at a time, through ReSearchPipeline and both servers
    limit       the requests that `ours` made to the engine (same prompts, same numbers of tokens), all known
                beforehand, 64 at a time: no search, and no waiting for an earlier answer
    sequential  some of the questions, one after the other, as the published evaluation does
A first pass that is not measured fills the engine's prefix cache, for all three alike. One JSON line comes last.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tqdm import tqdm

from flashrag.client import RetrievalClient
from flashrag.dataset import Question
from flashrag.episode import RESEARCH, Dialect, Generation
from flashrag.errors import GenerationError, exit_on_user_error
from flashrag.generator import GeneratorSettings, load_generator
from flashrag.pipeline import METHODS, PipelineSettings
from flashrag.system.arguments import CommandParser, in_range
from flashrag.system.model_server import Engine, ModelServerOptions, model_server
from scripts.bench.inputs import add_demo_flags, demo_questions, demo_server, trained_model
from scripts.bench.load import Load
from scripts.bench.report import paired_rounds, print_report, ratios

MODEL_TOKENS = 640
RESULTS = {"retrieval_topk": 2, "max_result_tokens": 160}
LIMITS = {"max_response_tokens": 384, "max_searches": 4, "generator_max_input_len": MODEL_TOKENS}
TARGETS = {"ours_over_sequential": ">= 8", "ours_over_limit": ">= 0.7", "failed": "0"}


class Bench:
    """The pipeline under test, and the engine alone; both give questions per second."""

    def __init__(self, model: Path, model_url: str, search_url: str) -> None:
        served = {"sgl_remote_url": model_url, "generator_model": str(model), "generator_max_input_len": MODEL_TOKENS}
        self.generator = load_generator(GeneratorSettings(**served))
        self.client = RetrievalClient(search_url, top_n=RESULTS["retrieval_topk"])
        self.pipeline = METHODS["research"].pipeline(PipelineSettings(**RESULTS, **LIMITS), self.client, self.generator)
        self.url, self.failed = f"{model_url}/v1/completions", 0

    async def answer(self, questions: Sequence[Question], concurrency: int) -> float:
        queue = iter(questions)

        async def work() -> None:
            for question in queue:
                try:
                    await self.pipeline.answer(question)
                except Exception as error:  # counted, because a failed question is a quick one
                    self.failed += 1
                    print(f"failed: {question.id}: {error}", file=sys.stderr)

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return len(questions) / (time.perf_counter() - started)

    async def record(self, questions: Sequence[Question], concurrency: int) -> list[bytes]:
        """Answer the questions; returns the engine's requests as bodies that sample the same numbers of tokens."""
        generate, bodies = self.generator.generate, []

        async def recording(token_ids: Sequence[int], max_tokens: int, dialect: Dialect = RESEARCH) -> Generation:
            generation = await generate(token_ids, max_tokens, dialect)
            sampled = len(generation.token_ids)
            lengths = {"max_tokens": sampled, "min_tokens": sampled, "ignore_eos": True, "return_token_ids": True}
            asked = {"model": self.generator.served_name, "prompt": list(token_ids), "temperature": 0.0}
            bodies.append(json.dumps({**asked, **lengths}).encode())
            return generation

        self.generator.generate = recording
        await self.answer(questions, concurrency)
        self.generator.generate = generate
        return bodies

    async def replay(self, bodies: Sequence[bytes], questions: int, concurrency: int) -> float:
        # In a thread, because the event loop has to look after the pipeline's idle connections.
        traffic = await asyncio.to_thread(Load().closed_loop, self.url, bodies, concurrency)
        if traffic.count() != {200: len(bodies)}:
            raise GenerationError(f"{self.url} answered {traffic.count()} (status: requests); expected 200 alone")
        return questions / traffic.seconds

    def measure(self, questions: Sequence[Question], few: int, concurrency: int, rounds: int) -> dict[str, list[float]]:
        """Questions per second of each way in each round."""
        with asyncio.Runner() as runner:
            bodies = runner.run(self.record(questions, concurrency))
            per_s = paired_rounds(tqdm(range(rounds), unit="round"), {
                "ours": lambda _: runner.run(self.answer(questions, concurrency)),
                "limit": lambda _: runner.run(self.replay(bodies, len(questions), concurrency)),
                "sequential": lambda _: runner.run(self.answer(questions[:few], 1)),
            })  # fmt: skip
            runner.run(self.client.aclose())
            runner.run(self.generator.aclose())
        return per_s


def figures(per_s: Mapping[str, Sequence[float]], failed: int) -> dict[str, Any]:
    rates = {f"{way}_per_s": rounds for way, rounds in per_s.items()}
    return {**ratios(per_s, ("ours", "sequential"), ("ours", "limit")), **rates, "failed": failed}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="python scripts/bench/evaluation.py",
        description="Measure how many questions per second the evaluation answers.",
    )
    add_demo_flags(parser)
    add = parser.add_argument_group("the measurement").add_argument
    add("--questions", type=in_range(int, 1), default=500, help="number of the demo's questions")
    add("--sequential", type=in_range(int, 1), default=60, help="number of them to ask one after the other too")
    add("--concurrency", type=in_range(int, 1), default=64, help="number of questions at a time")
    add("--rounds", type=in_range(int, 1), default=3, help="number of rounds; figures are medians over them")
    options = parser.parse_args(argv)
    questions = demo_questions(options.demo_dir, options.questions)
    model = options.model_path or trained_model(options.demo_dir)
    log_path = options.demo_dir / "logs" / "bench_model_server.log"
    server = ModelServerOptions(model, Engine.VLLM, context_length=MODEL_TOKENS, log_path=log_path)
    with demo_server(options.demo_dir) as search, model_server(server) as (url, _):
        bench = Bench(model, url, search.url)
        per_s = bench.measure(questions, options.sequential, options.concurrency, options.rounds)
    print_report(figures(per_s, bench.failed), TARGETS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
