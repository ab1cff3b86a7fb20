"""The mix of a soak: seeded, complete, and each request as hostile as its kind says; every manner of sending, against a
real server that notes what reaches it; and the judge of the outcomes."""

import asyncio
import itertools
import json
from collections import Counter
from dataclasses import replace

import aiohttp
import numpy as np
import pytest
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from scripts.bench.answers import Truth
from scripts.soak.requests import (
    ANSWERED,
    CLOSED,
    CUT,
    GONE,
    LEFT,
    LONG_QUESTIONS,
    MAX_QUERY_CHARS,
    MEBIBYTE,
    STALLED,
    TOO_SLOW,
    TRICKLED,
    UNANSWERED,
    WHOLE,
    Case,
    Outcome,
    cases,
    long_queries,
    send,
    violation,
)

QUESTIONS = [f"question {number}" for number in range(500)]
LONG = long_queries(QUESTIONS)


@pytest.fixture(scope="module")
def mix():
    return list(itertools.islice(cases(QUESTIONS, seed=1), 20_000))


def test_a_seed_fixes_the_mix(mix):
    assert list(itertools.islice(cases(QUESTIONS, seed=1), 100)) == mix[:100]
    assert list(itertools.islice(cases(QUESTIONS, seed=2), 100)) != mix[:100]


def test_every_kind_and_manner_comes(mix):
    assert len({case.kind for case in mix}) == 16
    assert {case.manner for case in mix} == {WHOLE, TRICKLED, STALLED, CUT, LEFT}
    assert {case.route for case in mix} >= {"/search", "/batch_search", "/retrieve", "/queries"}


def test_sizes_are_1_to_256_and_queries_repeat(mix):
    sizes = Counter(len(case.queries) for case in mix if case.kind == "batch")
    assert (min(sizes), max(sizes)) == (1, 256)
    asked = Counter(query for case in mix for query in case.queries if case.kind == "search")
    popular = sum(count for query, count in asked.items() if query in QUESTIONS[:30])
    assert 0.45 < popular / asked.total() < 0.55  # half of the searches are for the first 6 % of the pool
    assert set(asked) > set(QUESTIONS[:100])


def test_what_can_be_answered_is_in_the_pool_and_in_the_body(mix):
    for case in mix:
        if 200 in case.allowed:
            assert set(case.queries) <= {*QUESTIONS, *LONG}
            body = json.loads(case.body)
            sent = body.get("queries", body.get("query"))
            assert (sent,) == case.queries or tuple(sent) == case.queries


def test_long_queries_are_as_long_as_allowed(mix):
    assert [len(query) for query in LONG] == [MAX_QUERY_CHARS] * LONG_QUESTIONS
    largest = {case.kind: len(case.body) for case in mix if "1 MiB" in case.kind}
    assert set(largest) == {"1 MiB query", "1 MiB of queries"}
    assert min(largest.values()) >= MEBIBYTE


TRUTH = Truth(np.array([[0.1, 0.9]], dtype=np.float32), ["q"], ["1", "2"], ["a", "b"])
CASE = Case("search", "/search", b"{}", ANSWERED, ("q",), 1)
REFUSED = replace(CASE, allowed=frozenset({422}), queries=())
DETAIL = b'{"detail": "why"}'


def judged(case: Case, outcome: Outcome) -> str | None:
    return violation(case, outcome, TRUTH)


def answer(*documents: dict[str, str]) -> bytes:
    return json.dumps(documents).encode()


RIGHT = answer({"id": "2", "contents": "b"})
LEAVING = replace(CASE, manner=LEFT, allowed=ANSWERED | UNANSWERED)
STALLING = replace(CASE, manner=STALLED, allowed=TOO_SLOW)


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        (CASE, Outcome(0.1, 200, RIGHT)),
        (CASE, Outcome(0.1, 429, DETAIL, retry_after="2")),
        (CASE, Outcome(30.1, 504, DETAIL)),
        (replace(CASE, deadline_s=0.01), Outcome(0.02, 504, DETAIL)),
        (REFUSED, Outcome(0.1, 422, DETAIL)),
        (LEAVING, Outcome(0.02, GONE)),
        (LEAVING, Outcome(0.01, 200, RIGHT)),
        (LEAVING, Outcome(0.01, CLOSED)),
        (STALLING, Outcome(30.0, 408, DETAIL)),
        (STALLING, Outcome(30.0, CLOSED)),
        (replace(CASE, manner=TRICKLED), Outcome(2.0, 200, RIGHT)),
    ],
)
def test_what_passes(case, outcome):
    assert judged(case, outcome) is None


@pytest.mark.parametrize(
    ("case", "outcome", "problem"),
    [
        (CASE, Outcome(0.1, 500, DETAIL), "500 b'"),
        (CASE, Outcome(0.1, 503, DETAIL, retry_after="1"), "503 b'"),  # neither loading nor draining
        (CASE, Outcome(0.1, 200, b"<html>"), "another shape"),
        (CASE, Outcome(0.1, 200, b'{"result": []}'), "another shape"),
        (CASE, Outcome(0.1, 200, answer({"id": "1", "contents": "a"})), "not the best passages"),
        (replace(CASE, route="/batch_search"), Outcome(0.1, 200, b"[]"), "another shape"),
        (CASE, Outcome(0.1, CLOSED), "closed b''"),
        (CASE, Outcome(40.0, GONE), "gone b'' after 40.0"),
        (CASE, Outcome(0.1, 429, DETAIL), "Retry-After None"),
        (CASE, Outcome(0.1, 429, DETAIL, retry_after="0.5"), "Retry-After '0.5'"),
        (CASE, Outcome(29.0, 504, DETAIL), "before its deadline of 30"),
        (REFUSED, Outcome(0.1, 200, RIGHT), "200 b"),
        (REFUSED, Outcome(0.1, 422, b"{}"), "KeyError('detail')"),
        (REFUSED, Outcome(0.1, 422, b'{"detail": ""}'), "without a reason"),
        (STALLING, Outcome(40.0, GONE), "gone b'' after 40.0"),
        (STALLING, Outcome(1.0, 200, RIGHT), "200 b"),
        (LEAVING, Outcome(0.01, 500, DETAIL), "500 b"),
    ],
)
def test_what_does_not(case, outcome, problem):
    assert problem in (judged(case, outcome) or "")


SENT = Case("search", "/search", b"x" * 1000, frozenset({200}))


@pytest.fixture(scope="module")
def bodies():
    """How many bytes of each request arrived, -1 where the client went away in the body."""
    return []


@pytest.fixture(scope="module")
def url(serve, bodies):
    app = FastAPI()

    @app.post("/search")
    async def search(request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            bodies.append(-1)
            return Response(status_code=400)
        bodies.append(len(body))
        await asyncio.sleep(0.1)
        return Response(body[:5], headers={"Retry-After": "3"}, status_code=429 if body == b"busy" else 200)

    return serve(app)


def sent(url: str, case: Case) -> Outcome:
    async def session_and_send() -> Outcome:
        async with aiohttp.ClientSession(url) as session:
            outcome = await send(session, case)
            await asyncio.sleep(0.2)  # the server notices a client that went away
            return outcome

    return asyncio.run(session_and_send())


def test_a_whole_request_is_answered(url, bodies):
    outcome = sent(url, SENT)
    assert (outcome.ending, outcome.content) == (200, b"xxxxx")
    assert sent(url, replace(SENT, body=b"busy")).retry_after == "3"
    assert bodies[-2:] == [1000, 4]


def test_a_trickled_body_arrives_whole_and_late(url, bodies):
    outcome = sent(url, replace(SENT, manner=TRICKLED))
    assert (outcome.ending, bodies[-1]) == (200, 1000)
    assert outcome.seconds > 0.9  # twenty pieces, 50 ms apart


def test_a_client_that_leaves_before_the_answer_has_sent_everything(url, bodies):
    outcome = sent(url, replace(SENT, manner=LEFT))
    assert (outcome.ending, bodies[-1]) == (GONE, 1000)


def test_a_client_that_leaves_in_the_body_is_noticed(url, bodies):
    outcome = sent(url, replace(SENT, manner=CUT))
    assert (outcome.ending, bodies[-1]) == (GONE, -1)


def test_a_stalled_body_lasts_as_long_as_we_wait(url, bodies):
    outcome = sent(url, replace(SENT, manner=STALLED._replace(patience_s=0.3)))
    assert (outcome.ending, bodies[-1]) == (GONE, -1)


def test_no_server_is_no_answer(closed_url):
    assert sent(closed_url, SENT).ending == CLOSED
