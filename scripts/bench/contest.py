"""The retrieval server against its rivals: paired rounds in a closed loop, an open loop over its capacity, memory."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flashrag.errors import ReSearchError
from scripts.bench.inputs import QuestionSupply
from scripts.bench.load import Load, Traffic
from scripts.bench.report import median, paired_rounds
from scripts.bench.servers import Direct, Server, in_own_process, our_server

TOP_N = 5
KEEP_EVERY = 50  # one answer in 50 is compared with a direct search
OVER_CAPACITY = 2.0
PROBE_EVERY_S = 0.1
SAMPLE_MEMORY_EVERY_S = 1.0


@dataclass(frozen=True)
class Plan:
    """How much is measured; the defaults are those of a full benchmark."""

    rounds: int = 5
    batch_sizes: tuple[int, ...] = (16, 32, 64, 128, 256)
    limit_queries: int = 512  # per batch size and round
    throughput_clients: int = 64
    throughput_queries: int = 1536
    blocking_queries: int = 256  # fewer, because the blocking server needs far longer for each
    single_queries: int = 200
    client_counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    ladder_rounds: int = 3
    ladder_queries: int = 200  # at least two for each client
    cached_queries: int = 8192  # fill the server's cache, so that its memory under overload can be flat
    overload_s: float = 60.0
    memory_queries: int = 5000
    memory_rounds: int = 2


class Refused(ReSearchError):
    """A server refused requests of a closed loop; its rate and latency would mean nothing."""


@dataclass(frozen=True)
class Contest:
    """The contestants, the questions, and the answers that are kept for checking.

    Each method returns its part of the line of JSON; lists have an entry for each round.
    """

    plan: Plan
    supply: QuestionSupply
    load: Load
    limits: Mapping[str, Direct]  # raw: the libraries' own calls; direct: with our encoder, the harder limit
    servers: Mapping[str, Server]  # ours; original: the blocking handler; blocking: with our encoder, the harder rival
    kept: dict[str, bytes] = field(default_factory=dict)

    def rounds(self, count: int, queries: int) -> list[list[str]]:
        return [self.supply.take(queries) for _ in range(count)]

    def post(self, name: str, clients: int, questions: Sequence[str]) -> Traffic:
        url, keep_every = f"{self.servers[name].url}/search", KEEP_EVERY if name == "ours" else 0
        traffic = self.load.closed_loop(url, search_bodies(questions), clients, keep_every)
        if traffic.count() != {200: len(questions)}:
            raise Refused(f"{url} gave {clients} clients {traffic.count()} (status: requests); expected 200 alone")
        self.kept.update((questions[number], answer) for number, answer in traffic.kept.items())
        return traffic

    def direct_ms(self, name: str, batch_size: int, questions: Sequence[str]) -> np.ndarray:
        return self.limits[name].call_ms(questions, batch_size, TOP_N)

    def warm_up(self) -> None:
        """The first searches of a process pay for lazy set-up."""
        for name in self.servers:
            self.post(name, self.plan.throughput_clients, self.supply.take(self.plan.blocking_queries))
        for name in self.limits:
            self.direct_ms(name, max(self.plan.batch_sizes), self.supply.take(self.plan.limit_queries))

    def throughput(self) -> dict[str, Any]:
        """Queries per second; without a server by the size of a batch."""

        def limit(name: str, size: int, questions: list[str]) -> float:
            asked = questions[: self.plan.limit_queries]
            return 1000 * len(asked) / self.direct_ms(name, size, asked).sum()

        def server(name: str, questions: list[str]) -> float:
            asked = questions if name == "ours" else questions[: self.plan.blocking_queries]
            return self.post(name, self.plan.throughput_clients, asked).accepted_per_s

        sizes = self.plan.batch_sizes
        ways: dict[Any, Callable[[list[str]], float]] = {
            **{(name, size): partial(limit, name, size) for size in sizes for name in self.limits},
            **{name: partial(server, name) for name in self.servers},
        }
        per_s = paired_rounds(self.rounds(self.plan.rounds, self.plan.throughput_queries), ways)
        limits = {name: {size: per_s[name, size] for size in sizes} for name in self.limits}
        return {**limits, **{name: per_s[name] for name in self.servers}}

    def cost(self, batch_size: int) -> dict[str, float]:
        """Milliseconds of processor time per query, which explain the distance to the limit."""
        direct, server = self.limits["direct"], self.servers["ours"]
        questions = self.supply.take(self.plan.throughput_queries)
        direct_s, server_s = direct.cpu_s(), server.cpu_s()
        self.direct_ms("direct", batch_size, questions)
        load_s = self.post("ours", self.plan.throughput_clients, questions).cpu_s
        spent_s = {"direct_ms": direct.cpu_s() - direct_s, "server_ms": server.cpu_s() - server_s, "load_ms": load_s}
        return {name: 1000 * seconds / len(questions) for name, seconds in spent_s.items()}

    def single_client(self) -> dict[str, Any]:
        """Median milliseconds; the floor is that of requests that are refused before any search."""
        queries, url = self.plan.single_queries, f"{self.servers['ours'].url}/search"
        medians_ms = paired_rounds(self.rounds(self.plan.rounds, queries), {
            "raw_ms": lambda questions: median(self.direct_ms("raw", 1, questions)),
            "direct_ms": lambda questions: median(self.direct_ms("direct", 1, questions)),
            "ours_ms": lambda questions: median(self.post("ours", 1, questions).latency_ms),
        })  # fmt: skip
        floor = self.load.closed_loop(url, search_bodies([" "] * queries), 1)
        return {**medians_ms, "http_floor_ms": median(floor.latency_ms)}

    def rung(self, clients: int) -> dict[str, Any]:
        """Our server and the harder rival under one number of clients."""
        questions = self.rounds(self.plan.ladder_rounds, max(self.plan.ladder_queries, 2 * clients))
        traffic = paired_rounds(questions, {name: partial(self.post, name, clients) for name in ("ours", "blocking")})
        p99_ms = {f"{name}_p99_ms": [_p99(one.latency_ms) for one in rounds] for name, rounds in traffic.items()}
        per_s = {f"{name}_per_s": [one.accepted_per_s for one in rounds] for name, rounds in traffic.items()}
        return {"clients": clients, **p99_ms, **per_s}

    def overload(self, config: Path, seed: int) -> dict[str, Any]:
        """Our server when it is asked for twice its capacity."""
        plan = self.plan
        with our_server(config, 1, config.parent) as server, in_own_process(Load) as prober:
            alone = replace(self, servers={"ours": server})
            alone.post("ours", plan.throughput_clients, self.supply.take(plan.cached_queries))
            warm_up = self.supply.take(plan.throughput_queries)
            capacity = alone.post("ours", plan.throughput_clients, warm_up).accepted_per_s
            offered = OVER_CAPACITY * capacity
            questions = self.supply.take(int(offered * plan.overload_s))
            due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / offered, len(questions)))
            probes_s = np.arange(0, plan.overload_s, PROBE_EVERY_S)
            memory_mib, url, bodies = [], f"{server.url}/search", search_bodies(questions)
            with ThreadPoolExecutor(2) as threads:
                flood = threads.submit(self.load.open_loop, url, bodies, due_s, KEEP_EVERY)
                probes = threads.submit(prober.open_loop, f"{server.url}/health", [None] * len(probes_s), probes_s)
                while not flood.done():
                    memory_mib.append(server.memory_mib())
                    wait([flood], SAMPLE_MEMORY_EVERY_S)
            queue_limit = server.metric("rag_queue_limit")
        traffic, health = flood.result(), probes.result()
        self.kept.update((questions[number], answer) for number, answer in traffic.kept.items())
        return {
            "capacity_per_s": capacity, "offered_per_s": offered, "status": traffic.count(),
            "accepted_per_s": traffic.accepted_per_s, "accepted_p99_ms": _p99(traffic.accepted_ms),
            "queue_limit": queue_limit, "memory_mib": memory_mib,
            "health_p99_ms": _p99(health.latency_ms), "health_failed": len(health.status) - len(health.accepted_ms),
        }  # fmt: skip

    def memory_mib(self, config: Path) -> dict[int, list[float]]:
        """After the same load, by the number of retrievers."""

        def measure(num_retriever: int, questions: list[str]) -> float:
            with our_server(config, num_retriever, config.parent) as server:
                replace(self, servers={"ours": server}).post("ours", self.plan.throughput_clients, questions)
                return server.memory_mib()

        rounds = self.rounds(self.plan.memory_rounds, self.plan.memory_queries)
        return paired_rounds(rounds, {count: partial(measure, count) for count in (1, 4)})


def search_bodies(questions: Sequence[str]) -> list[bytes]:
    return [json.dumps({"query": query, "top_n": TOP_N, "return_score": True}).encode() for query in questions]


def _p99(values: np.ndarray) -> float:
    return float(np.percentile(values, 99))


def best_batch(rates_by_batch: Mapping[int, Sequence[float]]) -> int:
    """The batch size with the highest rate, which is the limit."""
    return max(rates_by_batch, key=lambda size: median(rates_by_batch[size]))
