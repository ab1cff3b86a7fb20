"""The requests of a soak: seeded, most of them ordinary, many of them hostile; each sent in its manner, and judged.

Popular questions come often (a cache answers them), rare ones seldom. Right is a true answer, a documented refusal, or
no answer to a client that left.
"""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from random import Random
from typing import Any

import aiohttp

from scripts.bench.answers import Truth, parse_rankings

MAX_QUERY_CHARS = 8192
MAX_BATCH_QUERIES = 512
MAX_TOP_N = 1000
SERVER_DEADLINE_S = 30.0
PATIENCE_S = SERVER_DEADLINE_S + 10.0  # two cores are shared with the clients: an answer may come after its deadline
LIMITS = {  # of the server that is asked
    "max_query_chars": MAX_QUERY_CHARS,
    "max_batch_queries": MAX_BATCH_QUERIES,
    "max_top_n": MAX_TOP_N,
    "max_queue_queries": 512,
    "cache_queries": 1000,  # less than the pool: it is full when the warm-up is over, and goes on losing entries
    "request_timeout_s": SERVER_DEADLINE_S,
}
MEBIBYTE = 1 << 20
LARGEST_BATCH = 256
OK, BUSY, LATE = 200, 429, 504
TRICKLE_PIECES = 20
TRICKLE_PAUSE_S = 0.05
LEAVE_AFTER_S = 0.02
TIMER_S = 0.001  # the server's event loop counts milliseconds, and may end one that has only begun
BODY_TOO_SLOW = frozenset({408, LATE})


class Manner(StrEnum):
    WHOLE = "whole"
    TRICKLED = "trickled"  # the body arrives, slowly
    STALLED = "stalled"  # half of the body arrives, and the connection stays open
    CUT = "cut"  # half of the body arrives, and the client goes away
    LEFT = "left"  # the body arrives, and the client goes away before the answer


@dataclass(frozen=True)
class Case:
    """One request. `allowed` are the statuses that a right server may give; 200 must answer `queries`."""

    kind: str
    route: str
    body: bytes
    allowed: frozenset[int]
    queries: tuple[str, ...] = ()
    num: int = 0
    scored: bool = False
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    deadline_s: float = SERVER_DEADLINE_S
    manner: Manner = Manner.WHOLE


@dataclass(frozen=True)
class Pool:
    """The questions whose right answers are known; `long` ones are as long as a query may be."""

    questions: Sequence[str]
    long: Sequence[str]


def long_queries(questions: Sequence[str]) -> list[str]:
    """Each question, repeated up to the longest query that a server takes."""
    return [(f"{question} " * (MAX_QUERY_CHARS // len(question) + 1))[:MAX_QUERY_CHARS] for question in questions]


def cases(pool: Pool, seed: int) -> Iterator[Case]:
    """Requests without end."""
    mix, rng = _Answered(pool, Random(seed)), Random(seed)
    weighted = [*mix.kinds(), *((weight, partial(rng.choice, some)) for weight, some in refused(pool.questions[0]))]
    weights, kinds = zip(*weighted, strict=True)
    while True:
        yield rng.choices(kinds, weights)[0]()


def refused(query: str) -> list[tuple[float, list[Case]]]:
    """Requests that must be refused, kind by kind, each with the weight of its kind."""
    long, blanks = "x" * (MAX_QUERY_CHARS + 1), ("", " ", "\n\t", "\u3000")
    whole = json.dumps({"query": query}).encode()
    odd = (b"\xff" + whole, b"[" * 5000, b"null", b'{"query":"\\ud800"}')
    blank = {
        "/search": [{"query": text} for text in blanks],
        "/batch_search": [{"query": [query, text]} for text in blanks],
        "/retrieve": [{"queries": [text, query]} for text in blanks],
        "/queries": [{"queries": [text], "k": 3} for text in blanks],
    }
    wrong_type = {
        "/search": [{}, [query], {"query": [query]}, {"query": None}, {"query": query, "top_n": "many"}],
        "/batch_search": [{"query": query}, {"query": [query, 7]}, {"query": [query], "top_n": 1.5}],
        "/retrieve": [{"queries": {"a": query}}, {"queries": [query], "topk": []}],
        "/queries": [{"queries": 7, "k": 3}],
    }
    over_limit = {
        "/search": [{"query": long}, *({"query": query, "top_n": num} for num in (-1, 0, MAX_TOP_N + 1))],
        "/batch_search": [{"query": [query] * (MAX_BATCH_QUERIES + 1)}],
        "/retrieve": [{"queries": [query], "topk": MAX_TOP_N + 1}],
        "/queries": [{"queries": [query, long], "k": 3}],
    }
    mebibyte = [{"query": (text * MEBIBYTE)[:MEBIBYTE]} for text in ("x", "word ", "\u4e16")]
    elsewhere = (("POST", "/serach", 404), ("GET", "/search", 405), ("DELETE", "/retrieve", 405))
    return [
        (4, _refused("blank", blank, 400)),
        (4, _refused("malformed", {"/search": [b"", b"{", whole[:-1], whole + whole, *odd]}, 400, 422)),
        (4, _refused("wrong type", wrong_type, 422)),
        (3, _refused("over a limit", over_limit, 422)),
        (0.3, _refused("1 MiB query", {"/search": mebibyte}, 413, 422)),
        (1, [Case("no such route", route, b"", frozenset({code}), method=method) for method, route, code in elsewhere]),
    ]


def _refused(kind: str, bodies: Mapping[str, Sequence[Any]], *statuses: int) -> list[Case]:
    """A case of each body, by route; bytes are sent as they are."""
    flat = [(route, body) for route, some in bodies.items() for body in some]
    sent = [(route, body if isinstance(body, bytes) else json.dumps(body).encode()) for route, body in flat]
    return [Case(kind, route, body, frozenset(statuses)) for route, body in sent]


@dataclass(frozen=True)
class _Answered:
    """Makes the requests that a server answers, unless it is busy or late, or the client leaves."""

    pool: Pool
    rng: Random

    def kinds(self) -> Sequence[tuple[float, Callable[[], Case]]]:
        """Every kind with its weight."""
        return (
            (67, self.search),
            (4, self.batch),
            (2, lambda: self.of_many("one query many times", [self.popular()] * self.rng.randint(2, 64))),
            (0.2, lambda: self.of("as many as allowed", "/search", [self.popular()], MAX_TOP_N, True)),
            (0.02, self.mebibyte_of_queries),
            (4, self.short_deadline),
            (3, lambda: self.sent("left before the answer", Manner.LEFT)),
            (3, lambda: self.sent("left in the body", Manner.CUT)),
            (0.3, lambda: self.sent("trickled body", Manner.TRICKLED)),
            (0.02, lambda: self.sent("stalled body", Manner.STALLED)),
        )

    def popular(self) -> str:
        """A question; half of the time it is one of the first 6 %."""
        return self.pool.questions[int(len(self.pool.questions) * self.rng.random() ** 4)]

    def of(self, kind: str, route: str, queries: Sequence[str], num: int, scored: bool) -> Case:
        body = {
            "/search": {"query": queries[0], "top_n": num, "return_score": scored},
            "/batch_search": {"query": queries, "top_n": num, "return_score": scored},
            "/retrieve": {"queries": queries, "topk": num, "return_scores": scored},
            "/queries": {"queries": queries, "k": num},
        }[route]
        return Case(kind, route, json.dumps(body).encode(), frozenset({OK, BUSY, LATE}), tuple(queries), num, scored)

    def search(self) -> Case:
        num = self.rng.choice((1, 3, 5, 5, 5, 10))
        return self.of("search", "/search", [self.popular()], num, self.rng.random() < 0.5)

    def of_many(self, kind: str, queries: Sequence[str]) -> Case:
        route = self.rng.choice(("/batch_search", "/retrieve", "/queries"))
        return self.of(kind, route, queries, self.rng.choice((1, 3, 5)), self.rng.random() < 0.5)

    def batch(self) -> Case:
        """Sizes are spread evenly over the orders of magnitude; 1 % are the largest."""
        size = round(LARGEST_BATCH ** min(1.0, 1.01 * self.rng.random()))
        return self.of_many("batch", [self.popular() for _ in range(size)])

    def mebibyte_of_queries(self) -> Case:
        case = self.of_many("1 MiB of queries", self.rng.choices(self.pool.long, k=MEBIBYTE // MAX_QUERY_CHARS))
        return replace(case, allowed=case.allowed | {413})

    def short_deadline(self) -> Case:
        deadline_s = 10 ** self.rng.uniform(-4, -1)
        header = {"X-Request-Timeout": f"{deadline_s:.6f}"}
        return replace(self.search(), kind="short deadline", headers=header, deadline_s=deadline_s)

    def sent(self, kind: str, manner: Manner) -> Case:
        return replace(self.rng.choice((self.search, self.batch))(), kind=kind, manner=manner)


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


async def send(session: aiohttp.ClientSession, case: Case, patience_s: float = PATIENCE_S) -> Outcome:
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


def violation(case: Case, outcome: Outcome, truth: Truth) -> str | None:
    """What is wrong with an outcome, None where nothing is."""
    leaves = case.manner in (Manner.LEFT, Manner.CUT)
    if outcome.timed_out and not leaves:
        return "stuck: neither answered nor closed"
    if outcome.status is None:
        return None if leaves or case.manner is Manner.STALLED else "the connection ended without an answer"
    if case.manner is Manner.STALLED:
        return None if outcome.status in BODY_TOO_SLOW else f"status {outcome.status}"
    if outcome.status == LATE and outcome.seconds < case.deadline_s - TIMER_S:
        return f"504 after {outcome.seconds:.4f} s, before its deadline of {case.deadline_s:.4f} s"
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
