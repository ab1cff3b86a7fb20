"""The load: HTTP requests from a process of its own, whose cost is measured with the rest.

Bodies are made before the clock starts, answers are read and not parsed. Does not cover: judging answers (answers.py).
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import uvloop

UNANSWERED = 0  # in place of a status: refused, reset or out of time
TIMEOUT_S = 120.0
MAX_CONNECTIONS = 8192


@dataclass(frozen=True)
class Traffic:
    """What came of a list of requests, in their order."""

    seconds: float  # from the first request to the last answer
    cpu_s: float  # what making this load cost
    latency_ms: np.ndarray
    status: np.ndarray
    kept: dict[int, bytes] = field(repr=False)  # answers by the number of their request

    @property
    def accepted_ms(self) -> np.ndarray:
        return self.latency_ms[self.status == 200]

    @property
    def accepted_per_s(self) -> float:
        return len(self.accepted_ms) / self.seconds

    def count(self) -> dict[int, int]:
        """Requests by status."""
        statuses, counts = np.unique(self.status, return_counts=True)
        return dict(zip(statuses.tolist(), counts.tolist(), strict=True))


class Load:
    """Sends requests; one lives in each load process (`start_load`)."""

    def closed_loop(self, url: str, bodies: Sequence[bytes], clients: int, keep_every: int = 0) -> Traffic:
        """Each of `clients` posts its next body as soon as its last one is answered."""
        return uvloop.run(_Run(url, keep_every).closed_loop(bodies, clients))

    def open_loop(
        self, url: str, bodies: Sequence[bytes], per_second: float, seed: int, keep_every: int = 0
    ) -> Traffic:
        """Post bodies at Poisson times, answered or not; a latency counts from the time at which it was due."""
        return uvloop.run(_Run(url, keep_every).open_loop(bodies, per_second, seed))

    def probe(self, url: str, every_s: float, seconds: float) -> Traffic:
        """Get `url` at regular times on one connection; a latency counts from the time at which it was due."""
        return uvloop.run(_Run(url, keep_every=0).probe(every_s, seconds))


class _Run:
    """One load: its connections and its notes."""

    def __init__(self, url: str, keep_every: int) -> None:
        self._url = url
        self._keep_every = keep_every
        self._latency_s: dict[int, float] = {}
        self._status: dict[int, int] = {}
        self._kept: dict[int, bytes] = {}

    async def closed_loop(self, bodies: Sequence[bytes], clients: int) -> Traffic:
        numbered = iter(enumerate(bodies))

        async def client() -> None:
            for number, body in numbered:
                await self._post(number, body, time.perf_counter())

        async with self._connected():
            started, cpu_started = time.perf_counter(), time.process_time()
            await asyncio.gather(*(client() for _ in range(clients)))
            return self._traffic(started, cpu_started)

    async def open_loop(self, bodies: Sequence[bytes], per_second: float, seed: int) -> Traffic:
        due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / per_second, len(bodies)))
        async with self._connected(), asyncio.TaskGroup() as posts:
            started, cpu_started = time.perf_counter(), time.process_time()
            for number, (body, due) in enumerate(zip(bodies, due_s, strict=True)):
                await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
                posts.create_task(self._post(number, body, started + due))
        return self._traffic(started, cpu_started)

    async def probe(self, every_s: float, seconds: float) -> Traffic:
        async with self._connected():
            started, cpu_started = time.perf_counter(), time.process_time()
            for number in range(int(seconds / every_s)):
                due = started + number * every_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await self._request("GET", number, None, due)
            return self._traffic(started, cpu_started)

    def _connected(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            headers={"Content-Type": "application/json"},
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )
        return self._session

    async def _post(self, number: int, body: bytes, due: float) -> None:
        await self._request("POST", number, body, due)

    async def _request(self, method: str, number: int, body: bytes | None, due: float) -> None:
        try:
            async with self._session.request(method, self._url, data=body) as response:
                content = await response.read()
            self._status[number] = response.status
            if self._keep_every and number % self._keep_every == 0 and response.status == 200:
                self._kept[number] = content
        except (aiohttp.ClientError, TimeoutError, OSError):
            self._status[number] = UNANSWERED
        self._latency_s[number] = time.perf_counter() - due

    def _traffic(self, started: float, cpu_started: float) -> Traffic:
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        numbers = sorted(self._latency_s)
        latency_ms = 1000 * np.array([self._latency_s[number] for number in numbers])
        return Traffic(seconds, cpu_s, latency_ms, np.array([self._status[number] for number in numbers]), self._kept)
