"""Try to break the retrieval server: `python scripts/soak/retrieval.py --index_path … --corpus_path … --questions …`

Sends 100,000 mixed requests, many of them hostile (requests.py), and compares every answer with a direct search, every
refusal with the documented ones, and the server's memory after with that before. With `--restart N`, clients that retry
keep asking while the server is ended N times, politely and not, and started again on the same port.
Prints one line of JSON last. Exit codes: 0 survived, 1 not, 2 for a bad input.
"""

import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/soak
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import aiohttp
import httpx
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from flashrag.client import RetrievalClient
from flashrag.errors import ReSearchError, SearchError, exit_on_user_error
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.local_server import LOOPBACK, free_port
from scripts.bench.answers import Ranking, Truth, direct_truth
from scripts.bench.inputs import IndexOptions, read_unique_questions
from scripts.bench.servers import Server, our_server
from scripts.soak.requests import LIMITS, Case, Pool, cases, long_queries, send, violation

POOL_QUESTIONS = 3000
LONG_QUESTIONS = 16
BURST_EVERY = 5000
BURST_REQUESTS = 500
SETTLE_S = 30
# Before memory is measured for the first time; no more than are measured. Forward passes have hundreds of shapes, and
# until the allocator has seen them its heap grows: by 14 % from 10,000 requests on, by 3.6 % from 40,000 on.
WARM_UP_REQUESTS = 40_000
MEMORY_TOLERANCE = 1.05
RETRYING_CLIENTS = 16
RETRYING_TOP_N = 5
MAX_ATTEMPTS = 100  # a start takes seconds, more on a busy machine
UPTIME_S = 4.0
RESTART = "restart the server N times under clients that retry, instead of mixed requests (default: 0, do not)"
SOAK = "the soak"  # a group of --help


@dataclass(frozen=True, kw_only=True)
class SoakOptions(IndexOptions):
    """Try to break the retrieval server."""

    requests: int = flag("number of mixed requests", 100_000, type=in_range(int, 1), group=SOAK)
    clients: int = flag("number of requests at a time", 32, type=in_range(int, 1), group=SOAK)
    num_retriever: int = flag("the server's number of retrievers", 1, type=in_range(int, 1), group=SOAK)
    restart: int = flag(RESTART, 0, type=in_range(int, 0), group=SOAK)
    seed: int = flag("seed of the questions' order and of the mix", 1, group=SOAK)


@dataclass
class Tally:
    """The results so far, statuses or how connections ended, and the problems."""

    results: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def add(self, result: str, seconds: float, problem: str | None) -> None:
        self.results[result] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if problem:
            self.problems.append(problem)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(SoakOptions, "python scripts/soak/retrieval.py", argv)
    questions = read_unique_questions(options.questions, options.seed)[:POOL_QUESTIONS]
    pool = Pool(questions, long_queries(questions[:LONG_QUESTIONS]))
    options.run(lambda config: _soak(options, config, pool), **LIMITS)
    return 0


def _soak(options: SoakOptions, config: Path, pool: Pool) -> None:
    queries = list(dict.fromkeys([*pool.questions, *pool.long]))
    print(f"searching directly for {len(queries)} queries …", file=sys.stderr, flush=True)
    truth = direct_truth(options.index_path, options.corpus_path, options.model_path, queries)
    started = time.monotonic()
    if options.restart:
        figures, problems = survive_restarts(config, truth, options.restart, options.seed)
    else:
        figures, problems = survive_mix(config, truth, pool, options)
    for problem in problems[:20]:
        print(f"violation: {problem}")
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"violations": len(problems), **figures, "seconds": seconds}), flush=True)
    if problems:
        raise ReSearchError(f"{len(problems)} violations")


def survive_mix(config: Path, truth: Truth, pool: Pool, options: SoakOptions) -> tuple[dict[str, Any], list[str]]:
    """The figures, and everything that the server did wrong."""
    problems: list[str] = []
    with our_server(config, options.num_retriever, config.parent) as server:

        def soak(title: str, requests: int, seed: int) -> tuple[Tally, float]:
            every_s = 1.0 if sys.stderr.isatty() else 30.0  # a log file keeps every line of a progress bar
            mix = itertools.islice(cases(pool, seed), requests)
            mix = tqdm(mix, title, requests, mininterval=every_s, unit=" requests")
            tally = asyncio.run(send_all(server.url, iter(mix), options.clients, truth))
            problems.extend([*tally.problems, *settle(server)])
            return tally, server.memory_mib()

        _, before_mib = soak("warm-up", min(options.requests, WARM_UP_REQUESTS), options.seed + 1)
        tally, after_mib = soak("soak", options.requests, options.seed)
    if after_mib > before_mib * MEMORY_TOLERANCE:
        problems.append(f"memory grew from {before_mib:.0f} to {after_mib:.0f} MiB")
    log = (config.parent / "server.log").read_text(errors="replace")
    if "Traceback" in log:
        problems.append("the server's log holds a traceback: " + log[-2000:])
    return {
        "requests": tally.results.total(),
        "statuses": dict(sorted(tally.results.items())),
        "slowest_s": round(tally.slowest_s, 3),
        "memory_before_mib": round(before_mib, 1),
        "memory_after_mib": round(after_mib, 1),
    }, problems


async def send_all(url: str, requests: Iterator[Case], clients: int, truth: Truth) -> Tally:
    """Each client sends one request after the other, and now and then a burst of many at once."""
    tally, numbered = Tally(), enumerate(requests, start=1)
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(case: Case) -> None:
            outcome = await send(session, case)
            problem = violation(case, outcome, truth)
            result = str(outcome.status or ("gone" if outcome.timed_out else "closed"))
            tally.add(result, outcome.seconds, problem and f"{case.kind}: {case.method} {case.route}: {problem}")

        async def client() -> None:
            for number, case in numbered:
                burst = BURST_REQUESTS - 1 if number % BURST_EVERY == 0 else 0
                await asyncio.gather(*map(ask, [case, *(other for _, other in itertools.islice(numbered, burst))]))

        await asyncio.gather(*(client() for _ in range(clients)))
    return tally


def settle(server: Server) -> list[str]:
    """Wait until the server has nothing to do; the problem where it still has after `SETTLE_S`."""
    gauges: dict[str, float] = {}
    for _ in range(SETTLE_S):
        time.sleep(1.0)
        families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=30).text)
        gauges = {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}
        if gauges["rag_queue_queries"] == 0 and gauges["rag_retrievers_available"] == gauges["rag_retrievers"]:
            return []
    return [f"the server is still at work {SETTLE_S} s after the last request: {gauges}"]


def survive_restarts(config: Path, truth: Truth, restarts: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Ask through `restarts` restarts, by SIGTERM and SIGKILL in turn; the figures, and everything that went wrong."""
    tally, over, port = Tally(), Event(), free_port()
    with ThreadPoolExecutor(1) as thread:
        clients = thread.submit(lambda: asyncio.run(_ask_all(f"http://{LOOPBACK}:{port}", truth, over, tally, seed)))
        try:
            for number in tqdm(range(restarts + 1), desc="restarts", unit=" servers"):
                with our_server(config, 1, config.parent, port) as server:
                    before, started = tally.results.total(), time.monotonic()
                    # A client may still be in its pause between two attempts.
                    while time.monotonic() < started + UPTIME_S or tally.results.total() < before + RETRYING_CLIENTS:
                        time.sleep(0.1)
                    if number == restarts:  # the last server answers what is still asked
                        over.set()
                        clients.result()
                        break
                    server.process.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
                    exit_code = server.process.wait(60)
                    if number % 2 == 0 and exit_code != 0:
                        tally.problems.append(f"exit code {exit_code} after SIGTERM")
        finally:
            over.set()
    figures = {"restarts": restarts, "answered": tally.results["answered"]}
    return {**figures, "slowest_s": round(tally.slowest_s, 3)}, tally.problems


async def _ask_all(url: str, truth: Truth, over: Event, tally: Tally, seed: int) -> None:
    async def ask(rng: random.Random) -> None:
        while not over.is_set():
            query, started = rng.choice(truth.queries), time.monotonic()
            try:
                documents = await client.search(query)
            except SearchError as error:
                tally.add("lost", time.monotonic() - started, str(error))
                continue
            ranking = Ranking([document.contents for document in documents], [document.id for document in documents])
            problem = truth.problem(query, RETRYING_TOP_N, ranking)
            tally.add("answered", time.monotonic() - started, problem and f"{query!r}: {problem}")

    async with RetrievalClient(url, top_n=RETRYING_TOP_N, max_attempts=MAX_ATTEMPTS) as client:
        await asyncio.gather(*(ask(random.Random(seed + number)) for number in range(RETRYING_CLIENTS)))


if __name__ == "__main__":
    sys.exit(main())
