"""How fast `research` answers many questions at once: against one after the other, and against the engine alone.

    python scripts/bench/evaluation.py --demo_dir outputs/demo

Starts the model server (vLLM on a CPU) and the retrieval server over the demo's own files. In each round, side by side:
    ours        the questions, many at a time, through ReSearchPipeline and both servers
    limit       the requests that `ours` made to the engine (same prompts, same numbers of tokens), all known
                beforehand and as many at a time: no search, and no waiting for an earlier answer
    sequential  some of the questions, one after the other, as the published evaluation does
A first pass that is not measured fills the engine's prefix cache, for all three alike. One JSON line comes last.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tqdm import tqdm

from flashrag.client import RetrievalClient
from flashrag.dataset import Question
from flashrag.episode import RESEARCH, Dialect, Generation, Trajectory
from flashrag.errors import exit_on_user_error
from flashrag.generator import GeneratorSettings, load_generator
from flashrag.pipeline import METHODS, BasicPipeline, PipelineSettings
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.model_server import Engine, ModelServerOptions, model_server
from scripts.bench.inputs import DemoOptions, demo_config, demo_questions
from scripts.bench.load import Load
from scripts.bench.report import paired_rounds, print_report, ratios
from scripts.bench.servers import our_server

MODEL_TOKENS = 640
TOP_N = 2
LIMITS: dict[str, Any] = {"max_result_tokens": 160, "max_response_tokens": 384, "max_searches": 4}
LIMITS |= {"retrieval_topk": TOP_N, "generator_max_input_len": MODEL_TOKENS}
TARGETS = {"ours_over_sequential": ">= 8", "ours_over_limit": ">= 0.7", "failed": "0"}


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(DemoOptions):
    """Measure how many questions per second the evaluation answers."""

    questions: int = flag("number of the demo's questions", 500, type=in_range(int, 1))
    sequential: int = flag("number of them to ask one after the other too", 60, type=in_range(int, 1))
    concurrency: int = flag("number of questions at a time", 64, type=in_range(int, 1))
    rounds: int = flag("number of rounds; figures are medians over them", 3, type=in_range(int, 1))


class Bench:
    """The pipeline under test, and the engine alone; both give questions per second."""

    def __init__(self, model: Path, model_url: str, search_url: str) -> None:
        served = {"sgl_remote_url": model_url, "generator_model": str(model), "generator_max_input_len": MODEL_TOKENS}
        self.generator = load_generator(GeneratorSettings(**served))
        self.client = RetrievalClient(search_url, top_n=TOP_N)
        self.url, self.failed = f"{model_url}/v1/completions", 0

    def pipeline(self, concurrency: int) -> BasicPipeline:
        settings = PipelineSettings(**LIMITS, concurrency=concurrency)
        return METHODS["research"].pipeline(settings, self.client, self.generator)

    async def answer(self, questions: Sequence[Question], concurrency: int) -> float:
        pipeline, started = self.pipeline(concurrency), time.perf_counter()
        await pipeline.answer_all(questions, self._count_failed)
        return len(questions) / (time.perf_counter() - started)

    def _count_failed(self, trajectory: Trajectory) -> None:
        """A failed question is a quick one, so each is reported."""
        if trajectory.error is not None:
            self.failed += 1
            print(f"failed: {trajectory.question_id}: {trajectory.error}", file=sys.stderr)

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
        return questions / traffic.all_accepted(self.url).seconds

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
    options = parse_options(EvaluationOptions, "python scripts/bench/evaluation.py", argv)
    questions, logs = demo_questions(options.demo_dir, options.questions), options.demo_dir / "logs"
    log_path = logs / "bench_model_server.log"
    server = ModelServerOptions(options.model, Engine.VLLM, context_length=MODEL_TOKENS, log_path=log_path)
    config = demo_config(options.demo_dir, logs)
    with our_server(config, 1, logs) as search, model_server(server) as (url, _):
        bench = Bench(options.model, url, search.url)
        per_s = bench.measure(questions, options.sequential, options.concurrency, options.rounds)
    print_report(figures(per_s, bench.failed), TARGETS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
