"""Closed loops: our server, the blocking ones and the retriever without a server, side by side.

All run in alternating rounds on the same questions, so that a machine that slows down slows all of them, in an
order that turns round with every round; ratios are taken within a round.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flashrag.errors import ReSearchError
from scripts.bench.direct import Direct
from scripts.bench.load import Load, Traffic
from scripts.bench.questions import QuestionSupply
from scripts.bench.server_process import Server

TOP_N = 5
KEEP_EVERY = 50  # one answer in so many is compared with a direct search


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    batch_sizes: tuple[int, ...]
    limit_queries: int  # per batch size and round
    throughput_clients: int
    throughput_queries: int
    blocking_queries: int  # the blocking server needs far longer for each
    single_queries: int
    client_counts: tuple[int, ...]
    ladder_rounds: int
    ladder_queries: int  # more where that is less than two a client
    cached_queries: int  # fill the server's cache, so that memory under overload can be flat
    overload_s: float
    memory_queries: int
    memory_rounds: int


class Refused(ReSearchError):
    """A server did not answer a closed loop's requests; its rate and latency would mean nothing."""


@dataclass(frozen=True)
class Contest:
    """What is compared, the questions, and the answers kept for checking."""

    plan: Plan
    supply: QuestionSupply
    load: Load
    raw: Direct  # the libraries' own calls
    direct: Direct  # with our encoder: the harder limit
    ours: Server
    original: Server  # the blocking handler with the encoder call of its time
    blocking: Server  # the same with our encoder: the harder rival
    kept: dict[str, bytes] = field(default_factory=dict)

    def post(self, server: Server, questions: Sequence[str], clients: int) -> Traffic:
        keep_every = KEEP_EVERY if server is self.ours else 0
        traffic = self.load.closed_loop(f"{server.url}/search", search_bodies(questions), clients, keep_every)
        refused = {status: count for status, count in traffic.count().items() if status != 200}
        if refused:
            raise Refused(f"{server.url}: {clients} clients must all be answered, but got {refused} (status: requests)")
        self.kept.update((questions[number], answer) for number, answer in traffic.kept.items())
        return traffic


def search_bodies(questions: Sequence[str]) -> list[bytes]:
    return [json.dumps({"query": query, "top_n": TOP_N, "return_score": True}).encode() for query in questions]


@dataclass(frozen=True)
class Throughput:
    """Queries a second, an entry a round; without a server by the size of a batch."""

    raw: dict[int, list[float]]
    direct: dict[int, list[float]]
    ours: list[float]
    original: list[float]
    blocking: list[float]

    @property
    def over_raw(self) -> np.ndarray:
        return np.divide(self.ours, self.raw[best_batch(self.raw)])

    @property
    def over_direct(self) -> np.ndarray:
        return np.divide(self.ours, self.direct[best_batch(self.direct)])

    @property
    def over_original(self) -> np.ndarray:
        return np.divide(self.ours, self.original)

    @property
    def over_blocking(self) -> np.ndarray:
        return np.divide(self.ours, self.blocking)


def best_batch(rates_by_batch: Mapping[int, Sequence[float]]) -> int:
    """The size of a batch at which the limit is."""
    return max(rates_by_batch, key=lambda size: float(np.median(rates_by_batch[size])))


def measure_throughput(contest: Contest) -> Throughput:
    plan = contest.plan
    result = Throughput({size: [] for size in plan.batch_sizes}, {size: [] for size in plan.batch_sizes}, [], [], [])
    limits = ((contest.raw, result.raw), (contest.direct, result.direct))
    rivals = ((contest.ours, result.ours), (contest.original, result.original), (contest.blocking, result.blocking))
    for number in range(plan.rounds):
        questions = contest.supply.take(plan.throughput_queries)
        for size, (limit, rates_by_batch) in itertools.product(plan.batch_sizes, limits):
            call_ms = limit.call_ms(questions[: plan.limit_queries], size, TOP_N)
            rates_by_batch[size].append(1000 * plan.limit_queries / call_ms.sum())
        for server, rates in rivals if number % 2 == 0 else reversed(rivals):
            asked = questions if server is contest.ours else questions[: plan.blocking_queries]
            rates.append(contest.post(server, asked, plan.throughput_clients).accepted_per_s)
    return result


@dataclass(frozen=True)
class Cost:
    """Milliseconds of processor time a query: what the difference to the limit is spent on."""

    direct_ms: float
    server_ms: float
    load_ms: float


def measure_cost(contest: Contest, batch_size: int) -> Cost:
    plan = contest.plan
    questions = contest.supply.take(plan.throughput_queries)
    direct_s, server_s = contest.direct.cpu_s(), contest.ours.cpu_s()
    contest.direct.call_ms(questions, batch_size, TOP_N)
    traffic = contest.post(contest.ours, questions, plan.throughput_clients)
    per_query = 1000 / len(questions)
    return Cost(
        direct_ms=(contest.direct.cpu_s() - direct_s) * per_query,
        server_ms=(contest.ours.cpu_s() - server_s) * per_query,
        load_ms=traffic.cpu_s * per_query,
    )


@dataclass(frozen=True)
class SingleClient:
    """Median milliseconds, an entry a round."""

    raw_ms: list[float]
    direct_ms: list[float]
    ours_ms: list[float]
    http_floor_ms: float  # the same client's request that is refused before any search

    @property
    def over_raw(self) -> np.ndarray:
        return np.divide(self.ours_ms, self.raw_ms)

    @property
    def over_direct(self) -> np.ndarray:
        return np.divide(self.ours_ms, self.direct_ms)


def measure_single_client(contest: Contest) -> SingleClient:
    raw_ms, direct_ms, ours_ms = [], [], []
    ways = (
        (raw_ms, lambda some: contest.raw.call_ms(some, 1, TOP_N)),
        (direct_ms, lambda some: contest.direct.call_ms(some, 1, TOP_N)),
        (ours_ms, lambda some: contest.post(contest.ours, some, 1).latency_ms),
    )
    for number in range(contest.plan.rounds):
        questions = contest.supply.take(contest.plan.single_queries)
        for medians, measure in ways if number % 2 else reversed(ways):
            medians.append(float(np.median(measure(questions))))
    blank = search_bodies([" "] * contest.plan.single_queries)
    floor = contest.load.closed_loop(f"{contest.ours.url}/search", blank, 1)
    return SingleClient(raw_ms, direct_ms, ours_ms, float(np.median(floor.latency_ms)))


@dataclass(frozen=True)
class Rung:
    """One number of clients; an entry a round."""

    clients: int
    ours_p99_ms: list[float] = field(default_factory=list)
    blocking_p99_ms: list[float] = field(default_factory=list)
    ours_per_s: list[float] = field(default_factory=list)
    blocking_per_s: list[float] = field(default_factory=list)


def measure_ladder(contest: Contest) -> list[Rung]:
    """Latency and throughput of our server and the harder rival for every number of clients."""
    rungs = [Rung(clients) for clients in contest.plan.client_counts]
    for number, rung in itertools.product(range(contest.plan.ladder_rounds), rungs):
        questions = contest.supply.take(max(contest.plan.ladder_queries, 2 * rung.clients))
        for ours in (True, False) if number % 2 == 0 else (False, True):
            traffic = contest.post(contest.ours if ours else contest.blocking, questions, rung.clients)
            (rung.ours_p99_ms if ours else rung.blocking_p99_ms).append(float(np.percentile(traffic.latency_ms, 99)))
            (rung.ours_per_s if ours else rung.blocking_per_s).append(traffic.accepted_per_s)
    return rungs
