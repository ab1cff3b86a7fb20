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

from flashrag.client import RetrievalClient
from flashrag.dataset import Question
from flashrag.episode import Source, Trajectory
from flashrag.errors import exit_on_user_error
from flashrag.generator import GeneratorSettings, load_generator
from flashrag.pipeline import METHODS, BasicPipeline, PipelineSettings
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.engine import Engine, ModelServerOptions
from flashrag.system.model_server import model_server
from scripts.bench.inputs import DemoOptions
from scripts.bench.load import Load
from scripts.bench.report import paired_rounds, print_report, ratios
from scripts.bench.servers import our_server

MODEL_TOKENS = 640
TOP_N = 2
LIMITS = {"max_result_tokens": 160, "max_response_tokens": 384, "max_searches": 4, "retrieval_topk": TOP_N}
TARGETS = {"ours_over_sequential": ">= 8", "ours_over_limit": ">= 0.7", "failed": "0"}


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(DemoOptions):
    """Measure how many questions per second the evaluation answers."""

    questions: int = flag("number of the demo's questions", 500, type=in_range(int, 1))
    sequential: int = flag("number of them to ask one after the other too", 60, type=in_range(int, 1))
    concurrency: int = flag("number of questions at a time", 64, type=in_range(int, 1))
    rounds: int = flag("number of rounds; figures are medians over them", 3, type=in_range(int, 1))


@dataclass
class Bench:
    """The pipeline under test, and the engine alone; both give questions per second."""

    client: RetrievalClient
    generator: Any
    completions_url: str
    failed: int = 0

    def pipeline(self, concurrency: int) -> BasicPipeline:
        settings = PipelineSettings(**LIMITS, generator_max_input_len=MODEL_TOKENS, concurrency=concurrency)
        return METHODS["research"].pipeline(settings, self.client, self.generator)

    async def answer(self, questions: Sequence[Question], concurrency: int) -> float:
        pipeline, started = self.pipeline(concurrency), time.perf_counter()
        trajectories = await pipeline.run(questions)
        seconds = time.perf_counter() - started
        for trajectory in trajectories:
            if trajectory.failed:  # in less time than an answer takes
                self.failed += 1
                print(f"failed: {trajectory.question_id}: {trajectory.error}", file=sys.stderr)
        return len(questions) / seconds

    async def replay(self, bodies: Sequence[bytes], questions: int, concurrency: int) -> float:
        # In a thread, because the event loop has to look after the pipeline's idle connections.
        traffic = await asyncio.to_thread(Load().closed_loop, self.completions_url, bodies, concurrency)
        return questions / traffic.all_accepted(self.completions_url).seconds

    def measure(self, questions: Sequence[Question], few: int, concurrency: int, rounds: int) -> dict[str, list[float]]:
        """Questions per second of each way in each round."""
        with asyncio.Runner() as runner:
            trajectories = runner.run(self.pipeline(concurrency).run(questions))
            bodies = engine_requests(trajectories, self.generator.served_name)
            per_s = paired_rounds("evaluation", range(rounds), {
                "ours": lambda _: runner.run(self.answer(questions, concurrency)),
                "limit": lambda _: runner.run(self.replay(bodies, len(questions), concurrency)),
                "sequential": lambda _: runner.run(self.answer(questions[:few], 1)),
            })  # fmt: skip
            runner.run(self.client.aclose())
            runner.run(self.generator.aclose())
        return per_s


def engine_requests(trajectories: Sequence[Trajectory], model: str) -> list[bytes]:
    """The requests behind the trajectories, in the order of their ends, as bodies that sample as many tokens."""
    requests = []
    for trajectory in trajectories:
        prompt, spans = list(trajectory.prompt_ids), iter(trajectory.generate_spans)
        for segment in trajectory.segments:
            if segment.source is Source.MODEL:
                sampled = len(segment.token_ids)
                lengths = {"max_tokens": sampled, "min_tokens": sampled, "ignore_eos": True, "return_token_ids": True}
                body = json.dumps({"model": model, "prompt": prompt, "temperature": 0.0, **lengths}).encode()
                requests.append((next(spans)[1], body))
            prompt += segment.token_ids
    return [body for _, body in sorted(requests)]


def figures(per_s: Mapping[str, Sequence[float]], failed: int) -> dict[str, Any]:
    rates = {f"{way}_per_s": rounds for way, rounds in per_s.items()}
    return {**ratios(per_s, ("ours", "sequential"), ("ours", "limit")), **rates, "failed": failed}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(EvaluationOptions, "python scripts/bench/evaluation.py", argv)
    questions, log_path = options.first_questions(options.questions), options.logs / "bench_model_server.log"
    server = ModelServerOptions(options.model, Engine.VLLM, context_length=MODEL_TOKENS, log_path=log_path)
    with our_server(options.serving_config, options.logs) as search, model_server(server) as (url, _):
        served = {"sgl_remote_url": url, "generator_model": str(options.model), "generator_max_input_len": MODEL_TOKENS}
        generator = load_generator(GeneratorSettings(**served))
        bench = Bench(RetrievalClient(search.url, top_n=TOP_N), generator, f"{url}/v1/completions")
        per_s = bench.measure(questions, options.sequential, options.concurrency, options.rounds)
    print_report(figures(per_s, bench.failed), TARGETS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
