"""The load: HTTP requests from a process of its own, so that the cost of making them can be measured too.

Bodies are made before the clock starts; answers are read and not parsed. Does not cover: judging answers (answers.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import numpy as np
import uvloop

from flashrag.errors import ReSearchError

UNANSWERED = 0  # in place of a status: refused, reset or out of time
TIMEOUT_S = 120.0
MAX_CONNECTIONS = 8192

Request = Callable[[int, bytes | None, float], Coroutine[Any, Any, None]]  # of a number, a body and its due time
Sender = Callable[[Request], Awaitable[None]]


@dataclass(frozen=True)
class Traffic:
    """The outcome of a list of requests, in their order."""

    seconds: float  # from the first request to the last answer
    cpu_s: float  # processor time spent on making this load
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
        return dict(Counter(self.status.tolist()))

    def all_accepted(self, url: str) -> Self:
        """This traffic; raises `ReSearchError` where `url` answered anything but 200: rate and latency mean nothing."""
        if self.count() != {200: len(self.status)}:
            raise ReSearchError(f"{url} answered {self.count()} (status: requests); expected 200 alone")
        return self


class Load:
    """Sends requests; `in_own_process(Load)` sends them from a process of its own."""

    def closed_loop(self, url: str, bodies: Sequence[bytes], clients: int, keep_every: int = 0) -> Traffic:
        """Each of `clients` posts its next body as soon as its last one is answered."""
        numbered = iter(enumerate(bodies))

        async def client(request: Request) -> None:
            for number, body in numbered:
                await request(number, body, time.perf_counter())

        return uvloop.run(_measured(url, len(bodies), [client] * clients, keep_every))

    def open_loop(self, url: str, bodies: Sequence[bytes | None], due_s: np.ndarray, keep_every: int = 0) -> Traffic:
        """Post bodies (get, where one is None) at their times, whether or not earlier ones are answered.

        Latencies count from the time at which a request was due.
        """

        async def crowd(request: Request) -> None:
            started = time.perf_counter()
            async with asyncio.TaskGroup() as posts:
                for number, (body, due) in enumerate(zip(bodies, started + due_s, strict=True)):
                    await asyncio.sleep(due - time.perf_counter())
                    posts.create_task(request(number, body, due))

        return uvloop.run(_measured(url, len(bodies), [crowd], keep_every))


async def _measured(url: str, requests: int, senders: Sequence[Sender], keep_every: int) -> Traffic:
    latency_ms, status = np.zeros(requests), np.full(requests, UNANSWERED)
    kept: dict[int, bytes] = {}

    async def request(number: int, body: bytes | None, due: float) -> None:
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with session.request("GET" if body is None else "POST", url, data=body) as response:
                content = await response.read()
            status[number] = response.status
            if keep_every and number % keep_every == 0 and response.status == 200:
                kept[number] = content
        latency_ms[number] = 1000 * (time.perf_counter() - due)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        headers={"Content-Type": "application/json"},
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
    ) as session:
        started, cpu_started = time.perf_counter(), time.process_time()
        await asyncio.gather(*(send(request) for send in senders))
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return Traffic(seconds, cpu_s, latency_ms, status, kept)
