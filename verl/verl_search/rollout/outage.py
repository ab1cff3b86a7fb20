"""Waiting for the retrieval servers: a search that failed while no server is healthy is repeated after the outage.

Each agent-loop worker has one `Outage`, around the client and outside of the episodes. While a server is healthy, a
search that fails twice ends its episode. While none is, the episodes that search wait, and their clocks are stopped.
Does not cover: the client's own attempts (flashrag/client/client.py), which come first.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_exponential

from flashrag.client import PROBE_TIMEOUT_S, check_server
from flashrag.errors import SearchError, UserError
from verl_search.trainer.stopping import StopTraining, print_notice

BACK_OFF = wait_exponential(multiplier=0.5, max=30.0)  # seconds
T = TypeVar("T")


class EpisodeClock:
    """Monotonic seconds for one episode's deadlines; the seconds that an outage takes do not count."""

    def __init__(self) -> None:
        self._lost_s = 0.0
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        now = time.monotonic() if self._stopped_at is None else self._stopped_at
        return now - self._lost_s

    def stop(self, since: float) -> None:
        """Stop the clock at `since`, a past value of `time.monotonic()`."""
        self._stopped_at = since

    def go_on(self, *, lost: bool) -> None:
        """Restart the clock: from its stopped value if the time was `lost`, else as if it had never stopped."""
        assert self._stopped_at is not None, "called only after stop"
        self._lost_s += time.monotonic() - self._stopped_at if lost else 0.0
        self._stopped_at = None


class Outage:
    """The state of the servers at `url` as one event loop sees it, shared by all its episodes."""

    def __init__(self, url: str, max_outage_s: float):
        self.url = url
        self.max_outage_s = max_outage_s
        self._waiting = 0
        # Kept until a search succeeds: a server that every search kills has not recovered.
        self._since: float | None = None
        self._watch: asyncio.Task[bool] | None = None

    async def wait_out(self, search: Callable[[], Awaitable[T]], clock: EpisodeClock) -> T:
        """The result of `search`, which is repeated after each outage that made it fail.

        Raises its `SearchError` when a server is healthy, and `StopTraining` after `max_outage_s` without a success.
        """
        seen_healthy = False
        while True:
            started = time.monotonic()
            try:
                found = await search()
            except SearchError:
                if await self._held_up(clock, started):
                    seen_healthy = False
                elif seen_healthy:
                    raise
                else:  # the server may have recovered after the failure: try once more
                    seen_healthy = True
            else:
                self._since = None
                return found

    async def _held_up(self, clock: EpisodeClock, since: float) -> bool:
        """Wait until a server is healthy; returns False if there was no outage. All searches share one watch."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_health())
        waited = False
        self._waiting += 1
        clock.stop(since)
        try:
            waited = await asyncio.shield(self._watch)
        finally:
            clock.go_on(lost=waited)
            self._waiting -= 1
        return waited

    async def _watch_health(self) -> bool:
        """Check until a server is healthy; returns False if the first check found one."""
        left_s = self.max_outage_s - (0.0 if self._since is None else time.monotonic() - self._since)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(UserError),
            wait=lambda state: min(BACK_OFF(state), left_s - (state.seconds_since_start or 0.0)),
            stop=stop_after_delay(left_s),
            before_sleep=self._tell_waiting,
            reraise=True,
        )
        try:
            await retrying(self._check_health)
        except UserError as problem:
            reason = f"no retrieval server was healthy for {self.max_outage_s:g} s (search.max_outage_s): {problem}"
            raise StopTraining(reason) from problem
        if retrying.statistics["attempt_number"] == 1:
            return False
        print_notice(f"{self.url} is healthy again: {self._waiting} searches continue")
        return True

    async def _check_health(self) -> None:
        await asyncio.to_thread(check_server, self.url, timeout_s=PROBE_TIMEOUT_S, key="search.url")

    def _tell_waiting(self, state: RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None, "called between two attempts"
        self._since = self._since or time.monotonic()
        out_s = time.monotonic() - self._since
        print_notice(
            f"{state.outcome.exception()}; {self._waiting} searches wait, for {out_s:.0f} s so far and at most "
            f"{self.max_outage_s:g} s; next check in {state.next_action.sleep:.1f} s"
        )
