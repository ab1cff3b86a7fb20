"""Measure the retrieval server: `python scripts/bench/retrieval.py --index_path … --corpus_path … --questions …`

Against what the machine can do without a server, and against the blocking handler of the first public code, each with
sentence-transformers' own encoder call and with ours; under twice its capacity; and its memory. Prints a table, and one
line of JSON last. docs/benchmarks.md says what each figure means. Does not cover: index types (index_types.py),
retrieval quality (retrieval_quality.py).
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/bench
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flashrag.errors import exit_on_user_error
from flashrag.retriever import check_assets
from flashrag.system.arguments import CommandParser
from flashrag.system.processes import run_guarded
from rag_serving.settings import read_settings
from scripts.bench.answers import direct_truth, parse_rankings
from scripts.bench.comparison import (
    TOP_N,
    Contest,
    Plan,
    best_batch,
    measure_cost,
    measure_ladder,
    measure_single_client,
    measure_throughput,
)
from scripts.bench.direct import Direct
from scripts.bench.index_options import IndexOptions, add_index_options
from scripts.bench.load import Load
from scripts.bench.overload import measure_memory, measure_overload
from scripts.bench.own_process import in_own_process
from scripts.bench.questions import QuestionSupply, read_unique_questions
from scripts.bench.report import Report, print_report
from scripts.bench.server_process import blocking_server, our_server, write_config

FULL = Plan(
    rounds=5,
    batch_sizes=(16, 32, 64, 128, 256),
    limit_queries=512,
    throughput_clients=64,
    throughput_queries=1536,
    blocking_queries=256,
    single_queries=200,
    client_counts=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    ladder_rounds=3,
    ladder_queries=200,
    cached_queries=8192,
    overload_s=60.0,
    memory_queries=5000,
    memory_rounds=2,
)
QUICK = Plan(
    rounds=2,
    batch_sizes=(8, 32),
    limit_queries=64,
    throughput_clients=16,
    throughput_queries=128,
    blocking_queries=64,
    single_queries=20,
    client_counts=(1, 8),
    ladder_rounds=2,
    ladder_queries=40,
    cached_queries=128,
    overload_s=5.0,
    memory_queries=128,
    memory_rounds=1,
)


@dataclass(frozen=True)
class BenchOptions(IndexOptions):
    seed: int
    quick: bool


def parse_args(argv: Sequence[str] | None = None) -> BenchOptions:
    parser = CommandParser(prog="python scripts/bench/retrieval.py", description="Measure the retrieval server.")
    add_index_options(parser, "a dense Flat index")
    add = parser.add_argument
    add("--seed", type=int, default=1)
    add("--quick", action="store_true", help="seconds instead of minutes; the figures mean nothing")
    return BenchOptions(**vars(parser.parse_args(argv)))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_args(argv)
    questions = read_unique_questions(options.questions, options.seed)
    with tempfile.TemporaryDirectory(prefix="retrieval-bench-") as folder:
        config = write_config(Path(folder), options.server_config)
        check_assets(read_settings(config))
        run_guarded(lambda: _bench(options, config, questions), "start it again")
    return 0


def _bench(options: BenchOptions, config: Path, questions: Sequence[str]) -> None:
    plan, folder = QUICK if options.quick else FULL, config.parent
    with in_own_process(Load) as load:
        with contextlib.ExitStack() as running:
            contest = Contest(
                plan=plan,
                supply=QuestionSupply(questions),
                load=load,
                raw=running.enter_context(in_own_process(Direct, config, our_encoder=False)),
                direct=running.enter_context(in_own_process(Direct, config, our_encoder=True)),
                ours=running.enter_context(our_server(config, 1, folder)),
                original=running.enter_context(blocking_server(config, folder)),
                blocking=running.enter_context(blocking_server(config, folder, "--our_encoder")),
            )
            _say("warm-up")
            _warm_up(contest)
            _say("throughput")
            throughput = measure_throughput(contest)
            cost = measure_cost(contest, best_batch(throughput.direct))
            _say("one client")
            single = measure_single_client(contest)
            _say("1 to many clients")
            ladder = measure_ladder(contest)
        _say("twice the capacity")
        overload = measure_overload(config, folder, plan, load, QuestionSupply(questions), options.seed)
        _say("memory")
        memory = measure_memory(config, folder, plan, load, QuestionSupply(questions))
    _say("checking the sampled answers")
    kept = {**contest.kept, **overload.kept}
    print_report(Report(throughput, cost, single, ladder, overload, memory, len(kept), _wrong(options, kept)))


def _warm_up(contest: Contest) -> None:
    """The first searches of a process pay for lazy set-up."""
    for server in (contest.ours, contest.original, contest.blocking):
        contest.post(server, contest.supply.take(contest.plan.blocking_queries), contest.plan.throughput_clients)
    for limit in (contest.raw, contest.direct):
        limit.call_ms(contest.supply.take(contest.plan.limit_queries), max(contest.plan.batch_sizes), TOP_N)


def _wrong(options: BenchOptions, kept: dict[str, bytes]) -> list[str]:
    """What is wrong with the answers that were kept, by question."""
    truth = direct_truth(options.index_path, options.corpus_path, options.model_path, list(kept))
    problems = {
        query: truth.problem(query, TOP_N, parse_rankings("/search", True, json.loads(answer))[0])
        for query, answer in kept.items()
    }
    return [f"{query!r}: {problem}" for query, problem in problems.items() if problem]


def _say(phase: str) -> None:
    print(f"{phase} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
