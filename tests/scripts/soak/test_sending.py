"""Every manner of sending, against a real server that notes what reaches it."""

import asyncio
from dataclasses import replace

import aiohttp
import pytest
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from scripts.soak.mix import Case, Manner
from scripts.soak.sending import Outcome, send

CASE = Case("search", "/search", b"x" * 1000, frozenset({200}))


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


def sent(url: str, case: Case, patience_s: float = 10.0) -> Outcome:
    async def session_and_send() -> Outcome:
        async with aiohttp.ClientSession(url) as session:
            outcome = await send(session, case, patience_s)
            await asyncio.sleep(0.2)  # the server notices a client that went away
            return outcome

    return asyncio.run(session_and_send())


def test_a_whole_request_is_answered(url, bodies):
    outcome = sent(url, CASE)
    assert (outcome.status, outcome.content, outcome.timed_out) == (200, b"xxxxx", False)
    assert sent(url, replace(CASE, body=b"busy")).retry_after == "3"
    assert bodies[-2:] == [1000, 4]


def test_a_trickled_body_arrives_whole_and_late(url, bodies):
    outcome = sent(url, replace(CASE, manner=Manner.TRICKLED))
    assert (outcome.status, bodies[-1]) == (200, 1000)
    assert outcome.seconds > 0.9  # twenty pieces, 50 ms apart


def test_a_client_that_leaves_before_the_answer_has_sent_everything(url, bodies):
    outcome = sent(url, replace(CASE, manner=Manner.LEFT))
    assert (outcome.status, outcome.timed_out, bodies[-1]) == (None, True, 1000)


def test_a_client_that_leaves_in_the_body_is_noticed(url, bodies):
    outcome = sent(url, replace(CASE, manner=Manner.CUT))
    assert (outcome.status, outcome.timed_out, bodies[-1]) == (None, False, -1)


def test_a_stalled_body_lasts_as_long_as_we_wait(url, bodies):
    outcome = sent(url, replace(CASE, manner=Manner.STALLED), patience_s=0.3)
    assert (outcome.status, outcome.timed_out) == (None, True)
    assert bodies[-1] == -1


def test_no_server_is_no_answer(closed_url):
    outcome = sent(closed_url, CASE)
    assert (outcome.status, outcome.timed_out) == (None, False)
