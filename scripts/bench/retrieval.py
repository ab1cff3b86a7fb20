"""Measure the retrieval server: `python scripts/bench/retrieval.py --index_path … --corpus_path … --questions …`

Compares it with what the machine can do without a server, and with the blocking handler of the first public code, each
with sentence-transformers' own encoder call and with ours; then asks for twice its capacity, and weighs its memory.
Prints a table, and one line of JSON last; docs/benchmarks.md explains each figure. Does not cover: index types
(index_types.py), retrieval quality (retrieval_quality.py).
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/bench
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from flashrag.errors import exit_on_user_error
from flashrag.retriever import check_assets
from flashrag.system.arguments import CommandParser
from flashrag.system.processes import run_guarded
from rag_serving.settings import read_settings
from scripts.bench.answers import direct_truth, parse_rankings
from scripts.bench.contest import TOP_N, Contest, Plan, best_batch
from scripts.bench.inputs import QuestionSupply, add_index_flags, index_server_config, read_unique_questions
from scripts.bench.load import Load
from scripts.bench.report import median, print_report
from scripts.bench.servers import Direct, blocking_server, in_own_process, our_server, write_config

QUICK = Plan(
    rounds=2, batch_sizes=(8, 32), client_counts=(1, 8), throughput_clients=16, ladder_rounds=2, memory_rounds=1,
    limit_queries=64, blocking_queries=64, single_queries=20, ladder_queries=40, overload_s=5.0,
    throughput_queries=128, cached_queries=128, memory_queries=128,
)  # fmt: skip
TARGETS = {
    "server_over_limit": ">= 0.80", "server_over_blocking": ">= 5", "single_client_latency_ratio": "<= 1.15",
    "p99_lower_at_every_client_count": "True", "health_p99_ms": "< 50", "rss_4_over_1": "<= 1.15", "answers_wrong": "0",
    "overload_5xx": "0", "overload_p99_ms": "below overload_p99_bound_ms", "overload_memory_growth": "flat",
}  # fmt: skip


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="python scripts/bench/retrieval.py", description="Measure the retrieval server.")
    add_index_flags(parser, "dense Flat index")
    add = parser.add_argument_group("the measurement").add_argument
    add("--seed", type=int, default=1, help="seed of the questions' order and of the arrival times")
    add("--quick", action="store_true", help="take a minute or two; the figures then mean nothing")
    options = parser.parse_args(argv)
    questions = read_unique_questions(options.questions, options.seed)
    with tempfile.TemporaryDirectory(prefix="retrieval-bench-") as folder:
        config = write_config(Path(folder), index_server_config(options))
        check_assets(read_settings(config))
        run_guarded(lambda: _measure(options, config, questions), "start it again")
    return 0


def _measure(options: argparse.Namespace, config: Path, questions: Sequence[str]) -> None:
    plan, folder = QUICK if options.quick else Plan(), config.parent
    raw: dict[str, Any] = {}
    with in_own_process(Load) as load:
        with contextlib.ExitStack() as running:
            direct = {"raw": in_own_process(Direct, config, our_encoder=False)}
            direct["direct"] = in_own_process(Direct, config, our_encoder=True)
            servers = {"ours": our_server(config, 1, folder), "original": blocking_server(config, folder)}
            servers["blocking"] = blocking_server(config, folder, "--our_encoder")
            limits = {name: running.enter_context(one) for name, one in direct.items()}
            rivals = {name: running.enter_context(one) for name, one in servers.items()}
            contest = Contest(plan, QuestionSupply(questions), load, limits, rivals)
            _say("warm-up")
            contest.warm_up()
            _say("throughput")
            raw["throughput"] = contest.throughput()
            raw["cost"] = contest.cost(best_batch(raw["throughput"]["direct"]))
            _say("one client")
            raw["single_client"] = contest.single_client()
            _say("1 to many clients")
            raw["ladder"] = [contest.rung(clients) for clients in plan.client_counts]
        _say("twice the capacity")
        raw["overload"] = contest.overload(config, options.seed)
        _say("memory")
        raw["memory_mib"] = contest.memory_mib(config)
    _say("checking the sampled answers")
    truth, wrong = direct_truth(options.index_path, options.corpus_path, options.model_path, list(contest.kept)), 0
    for query, answer in contest.kept.items():
        if problem := truth.problem(query, TOP_N, parse_rankings("/search", True, json.loads(answer))[0]):
            wrong += 1
            print(f"wrong answer: {query!r}: {problem}")
    print_report(figures(raw, len(contest.kept), wrong), TARGETS)


def _say(phase: str) -> None:
    print(f"{phase} …", file=sys.stderr, flush=True)


def figures(raw: dict[str, Any], answers_checked: int, answers_wrong: int) -> dict[str, Any]:
    """The figures of the line of JSON, ratios for each round, and what they are made of."""
    per_s, ms, overload = raw["throughput"], raw["single_client"], raw["overload"]
    limit, direct_limit = (per_s[name][best_batch(per_s[name])] for name in ("raw", "direct"))
    full_queue_s = None if overload["queue_limit"] is None else overload["queue_limit"] / overload["capacity_per_s"]
    _, middle_mib, last_mib = np.array_split(overload["memory_mib"], 3)  # in the first third the queue fills
    lower = [median(rung["ours_p99_ms"]) < median(rung["blocking_p99_ms"]) for rung in raw["ladder"]]
    return {
        "server_over_limit": np.divide(per_s["ours"], limit),
        "server_over_limit_with_our_encoder": np.divide(per_s["ours"], direct_limit),
        "server_over_blocking": np.divide(per_s["ours"], per_s["original"]),
        "server_over_blocking_with_our_encoder": np.divide(per_s["ours"], per_s["blocking"]),
        "single_client_latency_ratio": np.divide(ms["ours_ms"], ms["raw_ms"]),
        "single_client_latency_ratio_with_our_encoder": np.divide(ms["ours_ms"], ms["direct_ms"]),
        "p99_lower_at_every_client_count": all(lower),
        "overload_5xx": sum(count for status, count in overload["status"].items() if status >= 500),
        "overload_p99_ms": overload["accepted_p99_ms"],
        "overload_p99_bound_ms": None if full_queue_s is None else 2 * 1000 * full_queue_s,
        "overload_memory_growth": median(last_mib) / median(middle_mib),
        "health_p99_ms": overload["health_p99_ms"],
        "rss_4_over_1": np.divide(raw["memory_mib"][4], raw["memory_mib"][1]),
        "answers_checked": answers_checked,
        "answers_wrong": answers_wrong,
        "raw": raw,
    }


if __name__ == "__main__":
    sys.exit(main())
