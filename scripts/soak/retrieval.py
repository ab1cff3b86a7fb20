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
import re
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
from tqdm import tqdm

from flashrag.client import RetrievalClient
from flashrag.errors import SearchError, exit_on_user_error
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.local_server import LOOPBACK, free_port
from flashrag.system.network import ask
from scripts.bench.answers import Ranking, Truth, direct_truth
from scripts.bench.inputs import IndexOptions, read_unique_questions
from scripts.bench.servers import TOP_N, Server, our_server
from scripts.soak.requests import LIMITS, Case, cases, long_queries, send, violation

POOL_QUESTIONS = 3000
BURST_EVERY = 5000
BURST_REQUESTS = 500
SETTLE_S = 30
# Before memory is measured for the first time; no more than are measured. Forward passes have hundreds of shapes, and
# until the allocator has seen them its heap grows: by 14 % from 10,000 requests on, by 3.6 % from 40,000 on.
WARM_UP_REQUESTS = 40_000
MEMORY_TOLERANCE = 1.05
RETRYING_CLIENTS = 16
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


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(SoakOptions, "python scripts/soak/retrieval.py", argv)
    questions = read_unique_questions(options.questions, options.seed)[:POOL_QUESTIONS]
    queries = list(dict.fromkeys([*questions, *long_queries(questions)]))
    with options.serving(**LIMITS) as config:
        print(f"searching directly for {len(queries)} queries …", file=sys.stderr, flush=True)
        soak, started = Soak(options, config, questions, direct_truth(options, queries)), time.monotonic()
        figures = soak.survive_restarts() if options.restart else soak.survive_mix()
    for problem in soak.problems[:20]:
        print(f"violation: {problem}")
    seconds = {"slowest_s": round(soak.slowest_s, 3), "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({"violations": len(soak.problems), **figures, **seconds}), flush=True)
    return 1 if soak.problems else 0


@dataclass
class Soak:
    """A server's trial and its results so far; `survive_…` return the figures, `problems` are all that was wrong."""

    options: SoakOptions
    config: Path
    questions: Sequence[str]
    truth: Truth
    results: Counter[str] = field(default_factory=Counter)  # by status, or by how the connection ended
    problems: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def add(self, result: str, seconds: float, problem: str | None) -> None:
        self.results[result] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if problem:
            self.problems.append(problem)

    def survive_mix(self) -> dict[str, Any]:
        """The mixed requests, after a warm-up with others."""
        options, folder = self.options, self.config.parent
        with our_server(self.config, folder, options.num_retriever) as server:
            before_mib = self.memory_after(server, "warm-up", min(options.requests, WARM_UP_REQUESTS), options.seed + 1)
            self.results, self.slowest_s = Counter(), 0.0
            after_mib = self.memory_after(server, "soak", options.requests, options.seed)
        if after_mib > before_mib * MEMORY_TOLERANCE:
            self.problems.append(f"memory grew from {before_mib:.0f} to {after_mib:.0f} MiB")
        log = (folder / "server.log").read_text(errors="replace")
        if "Traceback" in log:
            self.problems.append("the server's log holds a traceback: " + log[-2000:])
        counts = {"requests": self.results.total(), "statuses": dict(sorted(self.results.items()))}
        return {**counts, "memory_before_mib": round(before_mib, 1), "memory_after_mib": round(after_mib, 1)}

    def memory_after(self, server: Server, title: str, requests: int, seed: int) -> float:
        """The server's memory once it has settled after this many requests."""
        every_s = 1.0 if sys.stderr.isatty() else 30.0  # a log file keeps every line of a progress bar
        mix = tqdm(itertools.islice(cases(self.questions, seed), requests), title, requests, mininterval=every_s)
        asyncio.run(self.send_all(server.url, iter(mix)))
        self.settle(server)
        return server.memory_mib()

    async def send_all(self, url: str, requests: Iterator[Case]) -> None:
        """Each client sends one request after the other, and now and then a burst of many at once."""
        numbered = enumerate(requests, start=1)
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask(case: Case) -> None:
                outcome = await send(session, case)
                problem = violation(case, outcome, self.truth)
                problem = problem and f"{case.kind}: {case.method} {case.route}: {problem}"
                self.add(str(outcome.ending), outcome.seconds, problem)

            async def client() -> None:
                for number, case in numbered:
                    burst = BURST_REQUESTS - 1 if number % BURST_EVERY == 0 else 0
                    await asyncio.gather(*map(ask, [case, *(other for _, other in itertools.islice(numbered, burst))]))

            await asyncio.gather(*(client() for _ in range(self.options.clients)))

    def settle(self, server: Server) -> None:
        """Wait until the server has nothing to do; a problem where it still has after `SETTLE_S`."""
        gauges: dict[str, str] = {}
        for _ in range(SETTLE_S):
            time.sleep(1.0)
            gauges = dict(re.findall(r"^(rag_\w+) (\S+)$", ask(f"{server.url}/metrics", timeout_s=30).text, re.M))
            if (
                float(gauges["rag_queue_queries"]) == 0
                and gauges["rag_retrievers_available"] == gauges["rag_retrievers"]
            ):
                return
        self.problems.append(f"the server is still at work {SETTLE_S} s after the last request: {gauges}")

    def survive_restarts(self) -> dict[str, Any]:
        """Questions of clients that retry, through restarts by SIGTERM and SIGKILL in turn."""
        over, port, restarts = Event(), free_port(), self.options.restart
        with ThreadPoolExecutor(1) as thread:
            clients = thread.submit(asyncio.run, self.ask_until(over, f"http://{LOOPBACK}:{port}"))
            try:
                for number in tqdm(range(restarts + 1), desc="restarts", unit=" servers"):
                    with our_server(self.config, self.config.parent, port=port) as server:
                        enough, started = self.results.total() + RETRYING_CLIENTS, time.monotonic()
                        # A client may still be in its pause between two attempts.
                        while time.monotonic() < started + UPTIME_S or self.results.total() < enough:
                            time.sleep(0.1)
                        if number == restarts:  # the last server answers what is still asked
                            over.set()
                            clients.result()
                            break
                        server.process.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
                        exit_code = server.process.wait(60)
                        if number % 2 == 0 and exit_code != 0:
                            self.problems.append(f"exit code {exit_code} after SIGTERM")
            finally:
                over.set()
        return {"restarts": restarts, "answered": self.results["answered"]}

    async def ask_until(self, over: Event, url: str) -> None:
        async def ask(rng: random.Random) -> None:
            while not over.is_set():
                query, started = rng.choice(self.truth.queries), time.monotonic()
                try:
                    found = await client.search(query)
                except SearchError as error:
                    self.add("lost", time.monotonic() - started, str(error))
                    continue
                ranking = Ranking([document.contents for document in found], [document.id for document in found])
                problem = self.truth.problem(query, TOP_N, ranking)
                self.add("answered", time.monotonic() - started, problem and f"{query!r}: {problem}")

        async with RetrievalClient(url, top_n=TOP_N, max_attempts=MAX_ATTEMPTS) as client:
            seeds = range(self.options.seed, self.options.seed + RETRYING_CLIENTS)
            await asyncio.gather(*(ask(random.Random(seed)) for seed in seeds))


if __name__ == "__main__":
    sys.exit(main())
