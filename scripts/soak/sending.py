"""Send one request of a soak, in its manner, and say what came of it."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

from scripts.soak.mix import Case, Manner

TRICKLE_PIECES = 20
TRICKLE_PAUSE_S = 0.05
LEAVE_AFTER_S = 0.02


@dataclass(frozen=True)
class Outcome:
    """`status` is None where the connection ended without an answer; `timed_out` where we gave up waiting."""

    seconds: float
    status: int | None = None
    content: bytes = b""
    retry_after: str | None = None
    timed_out: bool = False


class _Gone(Exception):
    """Raised in a body to make the client go away."""


async def send(session: aiohttp.ClientSession, case: Case, patience_s: float) -> Outcome:
    """`patience_s` is how long to wait for an answer; a client that leaves waits far less."""
    headers = {"Content-Type": "application/json", **case.headers}
    if case.manner in (Manner.TRICKLED, Manner.STALLED, Manner.CUT):
        headers["Content-Length"] = str(len(case.body))
    started = time.monotonic()
    timeout_s = LEAVE_AFTER_S if case.manner is Manner.LEFT else patience_s
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.request(case.method, case.route, data=_body(case), headers=headers) as response,
        ):
            content = await response.read()
            retry_after = response.headers.get("Retry-After")
            return Outcome(time.monotonic() - started, response.status, content, retry_after)
    except TimeoutError:
        return Outcome(time.monotonic() - started, timed_out=True)
    except (aiohttp.ClientError, _Gone, OSError):
        return Outcome(time.monotonic() - started)


def _body(case: Case) -> io.BytesIO | AsyncIterator[bytes]:
    # aiohttp reads a file piece by piece, and warns of large bytes, which it would copy at once.
    return io.BytesIO(case.body) if case.manner in (Manner.WHOLE, Manner.LEFT) else _slow_body(case)


async def _slow_body(case: Case) -> AsyncIterator[bytes]:
    half = len(case.body) // 2
    match case.manner:
        case Manner.TRICKLED:
            piece = len(case.body) // TRICKLE_PIECES + 1
            for start in range(0, len(case.body), piece):
                yield case.body[start : start + piece]
                await asyncio.sleep(TRICKLE_PAUSE_S)
        case Manner.STALLED:
            yield case.body[:half]
            await asyncio.Event().wait()
        case Manner.CUT:
            yield case.body[:half]
            raise _Gone
