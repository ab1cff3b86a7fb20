"""The judge of a soak: what passes, and that nothing else does."""

import json
from dataclasses import replace

import numpy as np
import pytest

from scripts.bench.answers import Truth
from scripts.soak.mix import Case, Manner
from scripts.soak.sending import Outcome
from scripts.soak.verdict import violation

TRUTH = Truth(np.array([[0.1, 0.9]], dtype=np.float32), ["q"], ["1", "2"], ["a", "b"])
CASE = Case("search", "/search", b"{}", frozenset({200, 429, 504}), ("q",), 1)
REFUSED = replace(CASE, allowed=frozenset({422}), queries=())
DETAIL = b'{"detail": "why"}'


def judged(case: Case, outcome: Outcome) -> str | None:
    return violation(case, outcome, TRUTH, server_deadline_s=30.0)


def answer(*documents: dict[str, str]) -> bytes:
    return json.dumps(documents).encode()


RIGHT = answer({"id": "2", "contents": "b"})
MANNER = {manner: replace(CASE, manner=manner) for manner in Manner}


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        (CASE, Outcome(0.1, 200, RIGHT)),
        (CASE, Outcome(0.1, 429, DETAIL, retry_after="2")),
        (CASE, Outcome(30.1, 504, DETAIL)),
        (replace(CASE, deadline_s=0.01), Outcome(0.02, 504, DETAIL)),
        (REFUSED, Outcome(0.1, 422, DETAIL)),
        (MANNER[Manner.LEFT], Outcome(0.02, timed_out=True)),
        (MANNER[Manner.LEFT], Outcome(0.01, 200, RIGHT)),
        (MANNER[Manner.CUT], Outcome(0.01)),
        (MANNER[Manner.STALLED], Outcome(30.0, 408, DETAIL)),
        (MANNER[Manner.STALLED], Outcome(30.0)),
        (MANNER[Manner.TRICKLED], Outcome(2.0, 200, RIGHT)),
    ],
)
def test_what_passes(case, outcome):
    assert judged(case, outcome) is None


@pytest.mark.parametrize(
    ("case", "outcome", "problem"),
    [
        (CASE, Outcome(0.1, 500, DETAIL), "status 500"),
        (CASE, Outcome(0.1, 503, DETAIL, retry_after="1"), "status 503"),  # neither loading nor draining
        (CASE, Outcome(0.1, 200, b"<html>"), "without JSON"),
        (CASE, Outcome(0.1, 200, b'{"result": []}'), "another shape"),
        (CASE, Outcome(0.1, 200, answer({"id": "1", "contents": "a"})), "a better passage left out"),
        (replace(CASE, route="/batch_search"), Outcome(0.1, 200, b"[]"), "0 answers to 1 queries"),
        (CASE, Outcome(0.1), "ended without an answer"),
        (CASE, Outcome(40.0, timed_out=True), "stuck"),
        (CASE, Outcome(0.1, 429, DETAIL), "Retry-After None"),
        (CASE, Outcome(0.1, 429, DETAIL, retry_after="0.5"), "Retry-After '0.5'"),
        (CASE, Outcome(29.0, 504, DETAIL), "before its deadline of 30"),
        (REFUSED, Outcome(0.1, 200, RIGHT), "status 200"),
        (REFUSED, Outcome(0.1, 422, b"{}"), "without a detail"),
        (MANNER[Manner.STALLED], Outcome(40.0, timed_out=True), "stuck"),
        (MANNER[Manner.STALLED], Outcome(1.0, 200, RIGHT), "status 200"),
        (MANNER[Manner.LEFT], Outcome(0.01, 500, DETAIL), "status 500"),
    ],
)
def test_what_does_not(case, outcome, problem):
    assert problem in (judged(case, outcome) or "")
