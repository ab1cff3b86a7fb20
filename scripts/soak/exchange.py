"""One request of a soak: sent in its manner, and judged.

Right is a true answer, a documented refusal, or no answer to a client that left.
"""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

from scripts.bench.answers import Truth, parse_rankings
from scripts.soak.mix import BUSY, LATE, OK, Case, Manner

TRICKLE_PIECES = 20
TRICKLE_PAUSE_S = 0.05
LEAVE_AFTER_S = 0.02
TIMER_S = 0.001  # the server's event loop counts milliseconds, and may end one that has only begun
BODY_TOO_SLOW = frozenset({408, LATE})


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
    headers, manner = {"Content-Type": "application/json", **case.headers}, case.manner
    # aiohttp reads a file piece by piece, and warns of large bytes, which it would copy at once.
    body: io.BytesIO | AsyncIterator[bytes] = io.BytesIO(case.body)
    if manner in (Manner.TRICKLED, Manner.STALLED, Manner.CUT):
        headers["Content-Length"] = str(len(case.body))
        body = _slow_body(case)
    started = time.monotonic()
    try:
        async with (
            asyncio.timeout(LEAVE_AFTER_S if manner is Manner.LEFT else patience_s),
            session.request(case.method, case.route, data=body, headers=headers) as response,
        ):
            content = await response.read()
            retry_after = response.headers.get("Retry-After")
            return Outcome(time.monotonic() - started, response.status, content, retry_after)
    except TimeoutError:
        return Outcome(time.monotonic() - started, timed_out=True)
    except (aiohttp.ClientError, _Gone, OSError):
        return Outcome(time.monotonic() - started)


async def _slow_body(case: Case) -> AsyncIterator[bytes]:
    if case.manner is Manner.TRICKLED:
        piece = len(case.body) // TRICKLE_PIECES + 1
        for start in range(0, len(case.body), piece):
            yield case.body[start : start + piece]
            await asyncio.sleep(TRICKLE_PAUSE_S)
        return
    yield case.body[: len(case.body) // 2]
    if case.manner is Manner.CUT:
        raise _Gone
    await asyncio.Event().wait()


def violation(case: Case, outcome: Outcome, truth: Truth, server_deadline_s: float) -> str | None:
    """What is wrong with an outcome, None where nothing is."""
    leaves = case.manner in (Manner.LEFT, Manner.CUT)
    if outcome.timed_out and not leaves:
        return "stuck: neither answered nor closed"
    if outcome.status is None:
        return None if leaves or case.manner is Manner.STALLED else "the connection ended without an answer"
    if case.manner is Manner.STALLED:
        return None if outcome.status in BODY_TOO_SLOW else f"status {outcome.status}"
    deadline_s = case.deadline_s or server_deadline_s
    if outcome.status == LATE and outcome.seconds < deadline_s - TIMER_S:
        return f"504 after {outcome.seconds:.4f} s, before its deadline of {deadline_s:.4f} s"
    return _answer_problem(case, outcome, truth)


def _answer_problem(case: Case, outcome: Outcome, truth: Truth) -> str | None:
    if outcome.status not in case.allowed:
        return f"status {outcome.status}: {outcome.content[:100]!r}"
    try:
        payload = json.loads(outcome.content)
    except ValueError:
        return f"status {outcome.status} without JSON: {outcome.content[:100]!r}"
    if outcome.status != OK:
        if not (isinstance(payload, dict) and payload.get("detail")):
            return f"a refusal without a detail: {outcome.content[:100]!r}"
        busy_without_hint = outcome.status == BUSY and not (outcome.retry_after or "").isdecimal()
        return f"429 with Retry-After {outcome.retry_after!r}" if busy_without_hint else None
    try:
        rankings = parse_rankings(case.route, case.scored, payload)
    except (KeyError, TypeError, ValueError) as error:
        return f"an answer of another shape ({error!r})"
    if len(rankings) != len(case.queries):
        return f"{len(rankings)} answers to {len(case.queries)} queries"
    problems = (truth.problem(query, case.num, ranking) for query, ranking in zip(case.queries, rankings, strict=True))
    return next((problem for problem in problems if problem), None)
