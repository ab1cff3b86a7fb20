"""Whether what came of a request is right: a true answer, a documented refusal, or a client that left."""

import json

from scripts.bench.answers import Truth, parse_rankings
from scripts.soak.mix import BUSY, LATE, OK, Case, Manner
from scripts.soak.sending import Outcome

TIMER_S = 0.001  # the server's event loop counts milliseconds, and may end one that has only begun
BODY_TOO_SLOW = frozenset({408, LATE})


def violation(case: Case, outcome: Outcome, truth: Truth, server_deadline_s: float) -> str | None:
    """What is wrong; None where nothing is."""
    if case.manner in (Manner.LEFT, Manner.CUT):
        return None if outcome.status is None else _answered(case, outcome, truth)
    if outcome.timed_out:
        return "stuck: neither answered nor closed"
    if case.manner is Manner.STALLED:
        return None if outcome.status is None or outcome.status in BODY_TOO_SLOW else f"status {outcome.status}"
    if outcome.status is None:
        return "the connection ended without an answer"
    deadline_s = case.deadline_s or server_deadline_s
    if outcome.status == LATE and outcome.seconds < deadline_s - TIMER_S:
        return f"504 after {outcome.seconds:.4f} s, before its deadline of {deadline_s:.4f} s"
    return _answered(case, outcome, truth)


def _answered(case: Case, outcome: Outcome, truth: Truth) -> str | None:
    if outcome.status not in case.allowed:
        return f"status {outcome.status}: {outcome.content[:100]!r}"
    try:
        payload = json.loads(outcome.content)
    except ValueError:
        return f"status {outcome.status} without JSON: {outcome.content[:100]!r}"
    if outcome.status != OK:
        return _refusal(outcome, payload)
    try:
        rankings = parse_rankings(case.route, case.scored, payload)
    except (KeyError, TypeError, ValueError) as error:
        return f"an answer of another shape ({error!r})"
    if len(rankings) != len(case.queries):
        return f"{len(rankings)} answers to {len(case.queries)} queries"
    problems = (truth.problem(query, case.num, ranking) for query, ranking in zip(case.queries, rankings, strict=True))
    return next((problem for problem in problems if problem), None)


def _refusal(outcome: Outcome, payload: object) -> str | None:
    if not (isinstance(payload, dict) and payload.get("detail")):
        return f"a refusal without a detail: {outcome.content[:100]!r}"
    if outcome.status == BUSY and not (outcome.retry_after or "").isdecimal():
        return f"429 with Retry-After {outcome.retry_after!r}"
    return None
