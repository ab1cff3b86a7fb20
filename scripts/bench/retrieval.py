"""Measure the retrieval server: `python scripts/bench/retrieval.py --index_path … --corpus_path … --questions …`

Compares it with what the machine can do without a server, and with the blocking handler of the first public code, each
with sentence-transformers' own encoder call and with ours; then asks for twice its capacity, and weighs its memory.
Prints a table, and one line of JSON last; docs/benchmarks.md explains each figure. Does not cover: index types
(index_types.py), retrieval quality (retrieval_quality.py).
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/bench
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
from omegaconf import DictConfig, OmegaConf

from flashrag.errors import exit_on_user_error
from flashrag.system.arguments import flag, parse_options
from rag_serving.settings import read_settings
from scripts.bench.answers import direct_truth, parse_rankings
from scripts.bench.inputs import IndexOptions, question_supply, read_unique_questions
from scripts.bench.load import Load, Traffic
from scripts.bench.report import paired_rounds, print_report
from scripts.bench.servers import TOP_N, Direct, Server, in_own_process, our_server

KEEP_EVERY = 50  # one answer in 50 is compared with a direct search
OVER_CAPACITY = 2.0
PROBE_EVERY_S = 0.1
SAMPLE_MEMORY_EVERY_S = 1.0
PLANS = OmegaConf.load(Path(__file__).with_suffix(".yaml"))  # the plans of a full and of a quick run, and the targets
p99 = partial(np.percentile, q=99)


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(IndexOptions):
    """Measure the retrieval server."""

    seed: int = flag("seed of the questions' order and of the arrival times", 1)
    quick: bool = flag("take a minute or two; the figures then mean nothing", False)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(RetrievalOptions, "python scripts/bench/retrieval.py", argv)
    questions = read_unique_questions(options.questions, options.seed)
    plan, raw = PLANS.quick if options.quick else PLANS.full, {}
    with options.serving() as config, in_own_process(Load) as load:
        with (
            in_own_process(Direct, config, our_encoder=False) as raw_limit,
            in_own_process(Direct, config, our_encoder=True) as limit,
            our_server(config, config.parent) as ours,
        ):
            limits = {"raw": raw_limit, "direct": limit}
            rivals = {"original": raw_limit.serve(), "blocking": limit.serve()}
            contest = Contest(plan, question_supply(questions), load, limits, ours, rivals)
            contest.warm_up()
            raw["throughput"] = contest.throughput()
            raw["cost"] = contest.cost(best_batch(raw["throughput"]["direct"]))
            raw["single_client"] = contest.single_client()
            raw["ladder"] = [contest.rung(clients) for clients in plan.client_counts]
        print("twice the capacity …", file=sys.stderr, flush=True)
        raw["overload"] = contest.overload(config, options.seed)
        raw["memory_mib"] = contest.memory_mib(config)
    truth, wrong = direct_truth(options, list(contest.kept)), 0
    for query, answer in contest.kept.items():
        if problem := truth.problem(query, TOP_N, parse_rankings("/search", True, json.loads(answer))[0]):
            wrong += 1
            print(f"wrong answer: {query!r}: {problem}")
    print_report(figures(raw, len(contest.kept), wrong), PLANS.targets)
    return 0


@dataclass(frozen=True)
class Contest:
    """The contestants, the questions, and the answers of our servers that are kept for checking.

    Each method returns its part of the line of JSON; lists have an entry for each round.
    """

    plan: DictConfig
    supply: Iterator[str]
    load: Load
    limits: Mapping[str, Direct]  # raw: the libraries' own calls; direct: with our encoder, the harder limit
    ours: Server
    rivals: Mapping[str, str]  # addresses: original, the blocking handler; blocking, the harder one with our encoder
    kept: dict[str, bytes] = field(default_factory=dict)

    def take(self, count: int) -> list[str]:
        return list(itertools.islice(self.supply, count))

    def compare(self, title: str, rounds: int, queries: int, ways: Mapping[Any, Callable[[list[str]], Any]]) -> Any:
        """`paired_rounds` of this many questions each."""
        return paired_rounds(title, [self.take(queries) for _ in range(rounds)], ways)

    def post(self, server: str, clients: int, questions: Sequence[str]) -> Traffic:
        url, keep_every = f"{server}/search", 0 if server in self.rivals.values() else KEEP_EVERY
        traffic = self.load.closed_loop(url, search_bodies(questions), clients, keep_every).all_accepted(url)
        self.kept.update((questions[number], answer) for number, answer in traffic.kept.items())
        return traffic

    def warm_up(self) -> None:
        """The first searches of a process pay for lazy set-up."""
        for server in (self.ours.url, *self.rivals.values()):
            self.post(server, self.plan.throughput_clients, self.take(self.plan.blocking_queries))
        for limit in self.limits.values():
            limit.call_ms(max(self.plan.batch_sizes), self.take(self.plan.limit_queries))

    def throughput(self) -> dict[str, Any]:
        """Queries per second; without a server by the size of a batch."""
        plan = self.plan

        def limit(name: str, size: int, questions: list[str]) -> float:
            return 1000 * plan.limit_queries / self.limits[name].call_ms(size, questions[: plan.limit_queries]).sum()

        def server(url: str, queries: int, questions: list[str]) -> float:
            return self.post(url, plan.throughput_clients, questions[:queries]).accepted_per_s

        ways: dict[Any, Any] = {(n, size): partial(limit, n, size) for size in plan.batch_sizes for n in self.limits}
        ways |= {"ours": partial(server, self.ours.url, plan.throughput_queries)}
        ways |= {name: partial(server, url, plan.blocking_queries) for name, url in self.rivals.items()}
        per_s = self.compare("throughput", plan.rounds, plan.throughput_queries, ways)
        by_size = {name: {size: per_s.pop((name, size)) for size in plan.batch_sizes} for name in self.limits}
        return {**by_size, **per_s}

    def cost(self, batch_size: int) -> dict[str, float]:
        """Milliseconds of processor time per query, which explain the distance to the limit."""
        direct, questions = self.limits["direct"], self.take(self.plan.throughput_queries)
        direct_s, server_s = direct.cpu_s(), self.ours.cpu_s()
        direct.call_ms(batch_size, questions)
        load_s = self.post(self.ours.url, self.plan.throughput_clients, questions).cpu_s
        spent_s = {"direct_ms": direct.cpu_s() - direct_s, "server_ms": self.ours.cpu_s() - server_s, "load_ms": load_s}
        return {name: 1000 * seconds / len(questions) for name, seconds in spent_s.items()}

    def single_client(self) -> dict[str, Any]:
        """Median milliseconds; the floor is that of requests that are refused before any search."""
        queries = self.plan.latency_queries
        medians_ms = self.compare("one client", self.plan.rounds, queries, {
            "raw_ms": lambda questions: np.median(self.limits["raw"].call_ms(1, questions)),
            "direct_ms": lambda questions: np.median(self.limits["direct"].call_ms(1, questions)),
            "ours_ms": lambda questions: np.median(self.post(self.ours.url, 1, questions).latency_ms),
        })  # fmt: skip
        floor = self.load.closed_loop(f"{self.ours.url}/search", search_bodies([" "] * queries), 1)
        return {**medians_ms, "http_floor_ms": np.median(floor.latency_ms)}

    def rung(self, clients: int) -> dict[str, Any]:
        """Our server and the harder rival under one number of clients."""
        queries = max(self.plan.latency_queries, 2 * clients)
        servers = {"ours": self.ours.url, "blocking": self.rivals["blocking"]}
        ways = {name: partial(self.post, server, clients) for name, server in servers.items()}
        traffic = self.compare(f"{clients} clients", self.plan.ladder_rounds, queries, ways)
        p99_ms = {f"{name}_p99_ms": [p99(one.latency_ms) for one in rounds] for name, rounds in traffic.items()}
        per_s = {f"{name}_per_s": [one.accepted_per_s for one in rounds] for name, rounds in traffic.items()}
        return {"clients": clients, **p99_ms, **per_s}

    def overload(self, config: Path, seed: int) -> dict[str, Any]:
        """Our server alone when it is asked for twice its capacity."""
        plan = self.plan
        with our_server(config, config.parent) as server, in_own_process(Load) as prober:
            self.post(server.url, plan.throughput_clients, self.take(plan.cached_queries))
            warm_up = self.take(plan.throughput_queries)
            capacity = self.post(server.url, plan.throughput_clients, warm_up).accepted_per_s
            offered = OVER_CAPACITY * capacity
            questions = self.take(int(offered * plan.overload_s))
            due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / offered, len(questions)))
            probes_s = np.arange(0, plan.overload_s, PROBE_EVERY_S)
            memory_mib, url, bodies = [], f"{server.url}/search", search_bodies(questions)
            with ThreadPoolExecutor(2) as threads:
                flood = threads.submit(self.load.open_loop, url, bodies, due_s, KEEP_EVERY)
                probes = threads.submit(prober.open_loop, f"{server.url}/health", [None] * len(probes_s), probes_s)
                while not flood.done():
                    memory_mib.append(server.memory_mib())
                    wait([flood], SAMPLE_MEMORY_EVERY_S)
        traffic, health = flood.result(), probes.result()
        self.kept.update((questions[number], answer) for number, answer in traffic.kept.items())
        return {
            "capacity_per_s": capacity, "offered_per_s": offered, "status": traffic.count(),
            "accepted_per_s": traffic.accepted_per_s, "accepted_p99_ms": p99(traffic.accepted_ms),
            "queue_limit": read_settings(config).max_queue_queries, "memory_mib": memory_mib,
            "health_p99_ms": p99(health.latency_ms), "health_failed": len(health.status) - len(health.accepted_ms),
        }  # fmt: skip

    def memory_mib(self, config: Path) -> dict[int, list[float]]:
        """After the same load, by the number of retrievers."""

        def measure(num_retriever: int, questions: list[str]) -> float:
            with our_server(config, config.parent, num_retriever) as server:
                self.post(server.url, self.plan.throughput_clients, questions)
                return server.memory_mib()

        ways = {count: partial(measure, count) for count in (1, 4)}
        return self.compare("memory", self.plan.memory_rounds, self.plan.memory_queries, ways)


def search_bodies(questions: Sequence[str]) -> list[bytes]:
    return [json.dumps({"query": query, "top_n": TOP_N, "return_score": True}).encode() for query in questions]


def best_batch(rates_by_batch: Mapping[int, Sequence[float]]) -> int:
    """The batch size with the highest rate, which is the limit."""
    return max(rates_by_batch, key=lambda size: np.median(rates_by_batch[size]))


def figures(raw: dict[str, Any], answers_checked: int, answers_wrong: int) -> dict[str, Any]:
    """The figures of the line of JSON, ratios for each round, and what they are made of."""
    per_s, ms, overload = raw["throughput"], raw["single_client"], raw["overload"]
    limit, direct_limit = (per_s[name][best_batch(per_s[name])] for name in ("raw", "direct"))
    full_queue_s = overload["queue_limit"] / overload["capacity_per_s"]
    _, middle_mib, last_mib = np.array_split(overload["memory_mib"], 3)  # in the first third the queue fills
    lower = [np.median(rung["ours_p99_ms"]) < np.median(rung["blocking_p99_ms"]) for rung in raw["ladder"]]
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
        "overload_p99_bound_ms": 2 * 1000 * full_queue_s,
        "overload_memory_growth": np.median(last_mib) / np.median(middle_mib),
        "health_p99_ms": overload["health_p99_ms"],
        "rss_4_over_1": np.divide(raw["memory_mib"][4], raw["memory_mib"][1]),
        "answers_checked": answers_checked,
        "answers_wrong": answers_wrong,
        "raw": raw,
    }


if __name__ == "__main__":
    sys.exit(main())
