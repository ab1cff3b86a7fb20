"""Open loop at twice the capacity, and memory: what a server does when it is asked for more than it can give."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.bench.comparison import KEEP_EVERY, Plan, search_bodies
from scripts.bench.load import Load
from scripts.bench.own_process import in_own_process
from scripts.bench.questions import QuestionSupply
from scripts.bench.server_process import our_server

OVER_CAPACITY = 2.0
PROBE_EVERY_S = 0.1
SAMPLE_MEMORY_EVERY_S = 1.0


@dataclass(frozen=True)
class Overload:
    capacity_per_s: float
    offered_per_s: float
    status: dict[int, int]
    accepted_per_s: float
    accepted_p99_ms: float
    queue_limit: float | None
    health_p99_ms: float
    health_failed: int
    memory_mib: list[float]
    kept: dict[str, bytes]

    @property
    def p99_bound_ms(self) -> float | None:
        """Twice the time in which a full queue is worked off."""
        return None if self.queue_limit is None else 2000 * self.queue_limit / self.capacity_per_s

    @property
    def status_5xx(self) -> int:
        return sum(count for status, count in self.status.items() if status >= 500)

    @property
    def memory_growth(self) -> float:
        """The last third's median over the middle third's: in the first, the queue fills as it is meant to."""
        _, middle, last = np.array_split(self.memory_mib, 3)
        return float(np.median(last) / np.median(middle))

    @property
    def memory_slope_mib_per_min(self) -> float:
        """Of the last two thirds."""
        settled = self.memory_mib[len(self.memory_mib) // 3 :]
        minutes = np.arange(len(settled)) * SAMPLE_MEMORY_EVERY_S / 60
        return float(np.polyfit(minutes, settled, 1)[0])


def measure_overload(config: Path, folder: Path, plan: Plan, load: Load, supply: QuestionSupply, seed: int) -> Overload:
    with our_server(config, 1, folder) as server, in_own_process(Load) as prober:
        search_url = f"{server.url}/search"
        load.closed_loop(search_url, search_bodies(supply.take(plan.cached_queries)), plan.throughput_clients)
        warm_up = search_bodies(supply.take(plan.throughput_queries))
        capacity = load.closed_loop(search_url, warm_up, plan.throughput_clients).accepted_per_s
        offered = OVER_CAPACITY * capacity
        questions = supply.take(int(offered * plan.overload_s))
        bodies = search_bodies(questions)
        with ThreadPoolExecutor(2) as threads:
            flood = threads.submit(load.open_loop, search_url, bodies, offered, seed, KEEP_EVERY)
            probes = threads.submit(prober.probe, f"{server.url}/health", PROBE_EVERY_S, plan.overload_s)
            memory_mib = list(_sampled(server.memory_mib, until=flood))
        traffic, health = flood.result(), probes.result()
        return Overload(
            capacity_per_s=capacity,
            offered_per_s=offered,
            status=traffic.count(),
            accepted_per_s=traffic.accepted_per_s,
            accepted_p99_ms=float(np.percentile(traffic.accepted_ms, 99)),
            queue_limit=server.metric("rag_queue_limit"),
            health_p99_ms=float(np.percentile(health.latency_ms, 99)),
            health_failed=len(health.status) - len(health.accepted_ms),
            memory_mib=memory_mib,
            kept={questions[number]: answer for number, answer in traffic.kept.items()},
        )


def measure_memory(
    config: Path, folder: Path, plan: Plan, load: Load, supply: QuestionSupply
) -> dict[int, list[float]]:
    """MiB after the same load, by the number of retrievers; an entry a round."""
    bodies = search_bodies(supply.take(plan.memory_queries))
    memory_mib: dict[int, list[float]] = {1: [], 4: []}
    for _ in range(plan.memory_rounds):
        for num_retriever, mib in memory_mib.items():
            with our_server(config, num_retriever, folder) as server:
                load.closed_loop(f"{server.url}/search", bodies, plan.throughput_clients)
                mib.append(server.memory_mib())
    return memory_mib


def _sampled(read: Callable[[], float], until: Future) -> Iterator[float]:
    while not until.done():
        yield read()
        with contextlib.suppress(TimeoutError):
            until.exception(SAMPLE_MEMORY_EVERY_S)
