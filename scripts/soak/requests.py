"""The requests of a soak: seeded, most of them ordinary, many of them hostile; each sent in its manner, and judged.

Popular questions come often (a cache answers them), rare ones seldom. Right is a true answer, a documented refusal, or
no answer to a client that left. What must be refused stands in requests.yaml.
"""

import asyncio
import json
import operator
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import aiohttp
from omegaconf import OmegaConf

from scripts.bench.answers import Truth, parse_rankings

OmegaConf.register_new_resolver("repeat", operator.mul, replace=True)
_TABLE: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_suffix(".yaml")), resolve=True)
LIMITS = _TABLE["limits"]  # of the server that is asked
MAX_QUERY_CHARS, SERVER_DEADLINE_S = LIMITS["max_query_chars"], LIMITS["request_timeout_s"]
LONG_QUESTIONS = 16
MEBIBYTE = 1 << 20
OK, BUSY, LATE, CLOSED, GONE = 200, 429, 504, "closed", "gone"
ANSWERED = frozenset({OK, BUSY, LATE})
UNANSWERED = frozenset({CLOSED, GONE})
TOO_SLOW = frozenset({408, LATE, CLOSED})
NEVER_S = 3600.0  # nobody waits for an hour
TIMER_S = 0.001  # the server's event loop counts milliseconds, and may end one that has only begun


class Manner(NamedTuple):
    """How a request is sent: the pieces of its body, the pause after each, and how long the client stays."""

    pieces: int = 1
    pause_s: float = 0.0
    patience_s: float = SERVER_DEADLINE_S + 10.0  # two cores are shared: an answer may come after its deadline


WHOLE, TRICKLED = Manner(), Manner(20, 0.05)
STALLED = Manner(2, NEVER_S)  # half of the body arrives, and the connection stays open
CUT = Manner(2, NEVER_S, 0.1)  # half of the body arrives, and the client goes away
LEFT = Manner(patience_s=0.02)  # the body arrives, and the client goes away


@dataclass(frozen=True)
class Case:
    """One request. `allowed` are the endings that a right server may give; 200 must answer `queries`."""

    kind: str
    route: str
    body: bytes
    allowed: frozenset[int | str]
    queries: tuple[str, ...] = ()
    num: int = 0
    scored: bool = False
    method: str = "POST"
    deadline_s: float = SERVER_DEADLINE_S
    manner: Manner = WHOLE


def long_queries(questions: Sequence[str]) -> list[str]:
    """The first questions, each repeated up to the longest query that a server takes."""
    some = questions[:LONG_QUESTIONS]
    return [(f"{question} " * (MAX_QUERY_CHARS // len(question) + 1))[:MAX_QUERY_CHARS] for question in some]


def cases(questions: Sequence[str], seed: int) -> Iterator[Case]:
    """Requests without end, about questions whose right answers are known, and about their `long_queries`."""
    mix, rng = _Answered(questions, long_queries(questions), Random(seed)), Random(seed)
    weighted = [*mix.kinds(), *((weight, partial(rng.choice, some)) for weight, some in refused())]
    weights, kinds = zip(*weighted, strict=True)
    while True:
        yield rng.choices(kinds, weights)[0]()


def refused() -> list[tuple[float, list[Case]]]:
    """The requests that must be refused, kind by kind, each with the weight of its kind."""

    def case(route: str, content: Any, kind: str, allowed: Sequence[int], method: str = "POST", **_: object) -> Case:
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        body = text.encode() if isinstance(text, str) else text
        return Case(kind, route, body, frozenset(allowed), method=method)

    return [
        (kind["weight"], [case(route, content, **kind) for route, some in kind["bodies"].items() for content in some])
        for kind in _TABLE["refused"]
    ]


@dataclass(frozen=True)
class _Answered:
    """Makes the requests that a server answers, unless it is busy or late, or the client leaves."""

    questions: Sequence[str]
    long: Sequence[str]
    rng: Random

    def kinds(self) -> Sequence[tuple[float, Callable[[], Case]]]:
        """Every kind with its weight."""
        rng, long_ones = self.rng, MEBIBYTE // MAX_QUERY_CHARS
        return (
            (67, self.search),
            (4, self.batch),
            (2, lambda: self.of_many("one query many times", [self.popular()] * rng.randint(2, 64))),
            (0.2, lambda: self.of("as many as allowed", "/search", [self.popular()], LIMITS["max_top_n"], True)),
            (0.02, lambda: self.of_many("1 MiB of queries", rng.choices(self.long, k=long_ones))),
            (4, self.short_deadline),
            (3, lambda: self.sent("left before the answer", LEFT, ANSWERED | UNANSWERED)),
            (3, lambda: self.sent("left in the body", CUT, ANSWERED | UNANSWERED)),
            (0.3, lambda: self.sent("trickled body", TRICKLED, ANSWERED)),
            (0.02, lambda: self.sent("stalled body", STALLED, TOO_SLOW)),
        )

    def popular(self) -> str:
        """A question; half of the time it is one of the first 6 %."""
        return self.questions[int(len(self.questions) * self.rng.random() ** 4)]

    def of(self, kind: str, route: str, queries: Sequence[str], num: int, scored: bool) -> Case:
        body = {
            "/search": {"query": queries[0], "top_n": num, "return_score": scored},
            "/batch_search": {"query": queries, "top_n": num, "return_score": scored},
            "/retrieve": {"queries": queries, "topk": num, "return_scores": scored},
            "/queries": {"queries": queries, "k": num},
        }[route]
        return Case(kind, route, json.dumps(body).encode(), ANSWERED, tuple(queries), num, scored)

    def search(self) -> Case:
        num = self.rng.choice((1, 3, 5, 5, 5, 10))
        return self.of("search", "/search", [self.popular()], num, self.rng.random() < 0.5)

    def of_many(self, kind: str, queries: Sequence[str]) -> Case:
        route = self.rng.choice(("/batch_search", "/retrieve", "/queries"))
        return self.of(kind, route, queries, self.rng.choice((1, 3, 5)), self.rng.random() < 0.5)

    def batch(self) -> Case:
        """Sizes are spread evenly over the orders of magnitude from 1 to 256; 1 % are the largest."""
        size = round(256 ** min(1.0, 1.01 * self.rng.random()))
        return self.of_many("batch", [self.popular() for _ in range(size)])

    def short_deadline(self) -> Case:
        deadline_s = 10 ** self.rng.uniform(-4, -1)
        return replace(self.search(), kind="short deadline", deadline_s=deadline_s)

    def sent(self, kind: str, manner: Manner, allowed: frozenset[int | str]) -> Case:
        return replace(self.rng.choice((self.search, self.batch))(), kind=kind, manner=manner, allowed=allowed)


class Outcome(NamedTuple):
    """`ending` is the status; CLOSED where the connection ended without one, GONE where we gave up waiting."""

    seconds: float
    ending: int | str
    content: bytes = b""
    retry_after: str | None = None


async def send(session: aiohttp.ClientSession, case: Case) -> Outcome:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(case.body))}
    if case.deadline_s < SERVER_DEADLINE_S:
        headers["X-Request-Timeout"] = f"{case.deadline_s:.6f}"
    started = time.monotonic()
    try:
        async with (
            asyncio.timeout(case.manner.patience_s),
            session.request(case.method, case.route, data=_pieces(case.body, case.manner), headers=headers) as response,
        ):
            content, retry_after = await response.read(), response.headers.get("Retry-After")
            return Outcome(time.monotonic() - started, response.status, content, retry_after)
    except TimeoutError:
        return Outcome(time.monotonic() - started, GONE)
    except (aiohttp.ClientError, OSError):
        return Outcome(time.monotonic() - started, CLOSED)


async def _pieces(body: bytes, manner: Manner) -> AsyncIterator[bytes]:
    size = len(body) // manner.pieces + 1
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(manner.pause_s)


def violation(case: Case, outcome: Outcome, truth: Truth) -> str | None:
    """What is wrong with an outcome, None where nothing is."""
    ending, shown = outcome.ending, f"{outcome.ending} {outcome.content[:100]!r} after {outcome.seconds:.4f} s"
    if ending not in case.allowed:
        return shown
    if ending in (CLOSED, GONE):
        return None
    if ending == LATE and outcome.seconds < case.deadline_s - TIMER_S:
        return f"{shown}, before its deadline of {case.deadline_s:.4f} s"
    if ending == BUSY and not (outcome.retry_after or "").isdecimal():
        return f"{shown}, with Retry-After {outcome.retry_after!r}"
    try:
        payload = json.loads(outcome.content)
        if ending != OK:
            return None if payload["detail"] else f"{shown}, without a reason"
        answers = zip(case.queries, parse_rankings(case.route, case.scored, payload), strict=True)
        return next(filter(None, (truth.problem(query, case.num, ranking) for query, ranking in answers)), None)
    except (KeyError, TypeError, ValueError) as error:
        return f"{shown}, of another shape ({error!r})"
