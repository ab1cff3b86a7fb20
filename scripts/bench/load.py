"""The load: HTTP requests from a process of its own, so that the cost of making them can be measured too.

Bodies are made before the clock starts; answers are read and not parsed. Does not cover: judging answers (answers.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
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
        return uvloop.run(_measured(url, [(body, None) for body in bodies], clients, keep_every))

    def open_loop(self, url: str, bodies: Sequence[bytes | None], due_s: np.ndarray, keep_every: int = 0) -> Traffic:
        """Post bodies (get, where one is None) at their times, whether or not earlier ones are answered.

        Latencies count from the time at which a request was due.
        """
        return uvloop.run(_measured(url, list(zip(bodies, due_s, strict=True)), len(bodies), keep_every))


async def _until(due: float) -> None:
    """Wait for this `time.perf_counter`, and not less: uvloop's timers may fire more than a millisecond early."""
    while (left_s := due - time.perf_counter()) > 0:
        await asyncio.sleep(left_s)


async def _measured(url: str, requests: Sequence[tuple[bytes | None, Any]], clients: int, keep_every: int) -> Traffic:
    """Each of `clients` sends the next request, when it is due, as soon as its last one is answered."""
    latency_ms, status = np.zeros(len(requests)), np.full(len(requests), UNANSWERED)
    numbered, kept = iter(enumerate(requests)), {}

    async def client() -> None:
        for number, (body, due_s) in numbered:
            due = time.perf_counter() if due_s is None else started + due_s
            await _until(due)
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
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return Traffic(seconds, cpu_s, latency_ms, status, kept)
