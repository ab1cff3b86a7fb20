"""Many clients send a mix of requests; every outcome is judged, and the server's memory is watched."""

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
from tqdm import tqdm

from scripts.bench.answers import Truth
from scripts.bench.server_process import Server
from scripts.soak.mix import Case, Pool, cases
from scripts.soak.sending import Outcome, send
from scripts.soak.verdict import violation

BURST_EVERY = 5000
BURST_REQUESTS = 500
SLACK_S = 10.0  # an answer may come so much later than its deadline: two cores are shared with the clients
SETTLE_S = 30.0
MEMORY_TOLERANCE = 1.05


@dataclass
class Tally:
    """What came of the requests so far."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def add(self, case: Case, outcome: Outcome, problem: str | None) -> None:
        left = "gone" if outcome.timed_out else "closed"
        self.outcomes[case.kind, left if outcome.status is None else str(outcome.status)] += 1
        self.slowest_s = max(self.slowest_s, outcome.seconds)
        if problem:
            self.violations.append(f"{case.kind} ({case.method} {case.route}): {problem}")

    def results(self) -> dict[str, int]:
        """Requests by status, or by how their connection ended."""
        by_result: Counter[str] = Counter()
        for (_, result), count in self.outcomes.items():
            by_result[result] += count
        return dict(sorted(by_result.items()))


@dataclass(frozen=True)
class Soak:
    server: Server
    pool: Pool
    truth: Truth
    clients: int
    server_deadline_s: float

    async def run(self, requests: int, seed: int, title: str) -> Tally:
        """Send that many requests, each client one after the other, with a burst of all at once now and then."""
        tally, patience_s = Tally(), self.server_deadline_s + SLACK_S
        numbered = enumerate(itertools.islice(cases(self.pool, seed), requests), start=1)
        connector = aiohttp.TCPConnector(limit=0)
        with tqdm(total=requests, desc=title, unit=" requests", mininterval=_progress_every_s()) as progress:
            async with aiohttp.ClientSession(self.server.url, connector=connector) as session:

                async def ask(case: Case) -> None:
                    outcome = await send(session, case, patience_s)
                    tally.add(case, outcome, violation(case, outcome, self.truth, self.server_deadline_s))
                    progress.update()

                async def client() -> None:
                    for number, case in numbered:
                        burst = BURST_REQUESTS - 1 if number % BURST_EVERY == 0 else 0
                        others = [other for _, other in itertools.islice(numbered, burst)]
                        await asyncio.gather(*map(ask, [case, *others]))

                await asyncio.gather(*(client() for _ in range(self.clients)))
        return tally

    async def settled(self) -> list[str]:
        """Wait until the server has nothing in hand; what is wrong where it has not in good time."""
        problems: list[str] = []
        for _ in range(int(SETTLE_S)):
            await asyncio.sleep(1.0)
            if not (problems := self._unsettled()):
                break
        return problems

    def _unsettled(self) -> list[str]:
        waiting = self.server.metric("rag_queue_queries")
        retrievers, available = self.server.metric("rag_retrievers"), self.server.metric("rag_retrievers_available")
        problems = [] if waiting == 0 else [f"rag_queue_queries is {waiting} when nobody asks"]
        return problems if available == retrievers else [*problems, f"{available} of {retrievers} retrievers are free"]


def _progress_every_s() -> float:
    return 1.0 if sys.stderr.isatty() else 30.0  # a log file keeps every line of a progress bar


def print_table(tally: Tally) -> None:
    kinds = sorted({kind for kind, _ in tally.outcomes})
    for kind in kinds:
        results = {result: count for (of_kind, result), count in sorted(tally.outcomes.items()) if of_kind == kind}
        print(f"{kind:<24}  {sum(results.values()):>7}  {'  '.join(f'{key}: {n}' for key, n in results.items())}")


def memory_problems(before_mib: float, after_mib: float) -> Sequence[str]:
    if after_mib <= before_mib * MEMORY_TOLERANCE:
        return []
    return [f"memory grew from {before_mib:.0f} to {after_mib:.0f} MiB"]
