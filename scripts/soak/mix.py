"""The requests of a soak: seeded, most of them ordinary, many of them hostile, each with the answers that are right.

Popular questions come often (a cache answers them), rare ones seldom. Nothing is sent here (exchange.py).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import Any

MAX_QUERY_CHARS = 8192
MAX_BATCH_QUERIES = 512
MAX_TOP_N = 1000
MEBIBYTE = 1 << 20
LARGEST_BATCH = 256
OK, BUSY, LATE = 200, 429, 504


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
    deadline_s: float | None = None  # None: the server's own
    manner: Manner = Manner.WHOLE


@dataclass(frozen=True)
class Pool:
    """The questions whose right answers are known; `long` ones are as long as a query may be."""

    questions: Sequence[str]
    long: Sequence[str]


Bodies = Mapping[str, Sequence[Any]]  # by route; bytes are sent as they are


def long_queries(questions: Sequence[str]) -> list[str]:
    """Each question, repeated up to the longest query that a server takes."""
    return [(f"{question} " * (MAX_QUERY_CHARS // len(question) + 1))[:MAX_QUERY_CHARS] for question in questions]


def cases(pool: Pool, seed: int) -> Iterator[Case]:
    """Requests without end."""
    mix = _Mix(pool, Random(seed))
    weights, kinds = zip(*mix.kinds(), strict=True)
    while True:
        yield mix.rng.choices(kinds, weights)[0]()


@dataclass(frozen=True)
class _Mix:
    """Makes a request of each kind."""

    pool: Pool
    rng: Random

    def kinds(self) -> Sequence[tuple[float, Callable[[], Case]]]:
        """Every kind with its weight."""
        return (
            (67, self.search),
            (4, self.batch),
            (2, lambda: self.of_many("one query many times", [self.popular()] * self.rng.randint(2, 64))),
            (0.2, lambda: self.answered("as many as allowed", "/search", [self.popular()], MAX_TOP_N, True)),
            (0.02, self.mebibyte_of_queries),
            (4, self.short_deadline),
            (3, lambda: self.sent("left before the answer", Manner.LEFT)),
            (3, lambda: self.sent("left in the body", Manner.CUT)),
            (0.3, lambda: self.sent("trickled body", Manner.TRICKLED)),
            (0.02, lambda: self.sent("stalled body", Manner.STALLED)),
            (4, lambda: self.refused("blank", self.blank(), 400)),
            (4, lambda: self.refused("malformed", self.malformed(), 400, 422)),
            (4, lambda: self.refused("wrong type", self.wrong_type(), 422)),
            (3, lambda: self.refused("over a limit", self.over_limit(), 422)),
            (0.3, lambda: self.refused("1 MiB query", self.mebibyte_query(), 413, 422)),
            (1, self.elsewhere),
        )

    def popular(self) -> str:
        """A question; half of the time it is one of the first 6 %."""
        return self.pool.questions[int(len(self.pool.questions) * self.rng.random() ** 4)]

    def answered(self, kind: str, route: str, queries: Sequence[str], num: int, scored: bool) -> Case:
        """A request that must be answered, unless the server is busy or late."""
        body = {
            "/search": {"query": queries[0], "top_n": num, "return_score": scored},
            "/batch_search": {"query": queries, "top_n": num, "return_score": scored},
            "/retrieve": {"queries": queries, "topk": num, "return_scores": scored},
            "/queries": {"queries": queries, "k": num},
        }[route]
        return Case(kind, route, json.dumps(body).encode(), frozenset({OK, BUSY, LATE}), tuple(queries), num, scored)

    def search(self) -> Case:
        num = self.rng.choice((1, 3, 5, 5, 5, 10))
        return self.answered("search", "/search", [self.popular()], num, self.rng.random() < 0.5)

    def of_many(self, kind: str, queries: Sequence[str]) -> Case:
        route = self.rng.choice(("/batch_search", "/retrieve", "/queries"))
        return self.answered(kind, route, queries, self.rng.choice((1, 3, 5)), self.rng.random() < 0.5)

    def batch(self) -> Case:
        """Sizes are spread evenly over the orders of magnitude; 1 % are the largest."""
        size = round(LARGEST_BATCH ** min(1.0, 1.01 * self.rng.random()))
        return self.of_many("batch", [self.popular() for _ in range(size)])

    def mebibyte_of_queries(self) -> Case:
        queries = self.rng.choices(self.pool.long, k=MEBIBYTE // MAX_QUERY_CHARS)
        case = self.of_many("1 MiB of queries", queries)
        return replace(case, allowed=case.allowed | {413})

    def short_deadline(self) -> Case:
        deadline_s = 10 ** self.rng.uniform(-4, -1)
        header = {"X-Request-Timeout": f"{deadline_s:.6f}"}
        return replace(self.search(), kind="short deadline", headers=header, deadline_s=deadline_s)

    def sent(self, kind: str, manner: Manner) -> Case:
        return replace(self.rng.choice((self.search, self.batch))(), kind=kind, manner=manner)

    def refused(self, kind: str, bodies: Bodies, *statuses: int) -> Case:
        """A request that must be refused: any one of the bodies."""
        route, body = self.rng.choice([(route, body) for route in bodies for body in bodies[route]])
        return Case(kind, route, body if isinstance(body, bytes) else json.dumps(body).encode(), frozenset(statuses))

    def blank(self) -> Bodies:
        blank, queries = self.rng.choice(("", " ", "\n\t", "\u3000")), [self.popular()] * self.rng.randint(0, 8)
        queries.insert(self.rng.randint(0, len(queries)), blank)
        many = {"/retrieve": [{"queries": queries}], "/queries": [{"queries": queries, "k": 3}]}
        return {"/search": [{"query": blank}], "/batch_search": [{"query": queries}], **many}

    def malformed(self) -> Bodies:
        whole = json.dumps({"query": self.popular()}).encode()
        odd = (b"\xff" + whole, b"[" * 5000, b"null", b'{"query":"\\ud800"}')
        return {"/search": [b"", b"{", whole[:-1], whole + whole, *odd]}

    def wrong_type(self) -> Bodies:
        query = self.popular()
        tops = [{"query": query, "top_n": num} for num in ("many", 1.5)]
        return {
            "/search": [{}, [query], {"query": [query]}, {"query": None}, *tops],
            "/batch_search": [{"query": query}, {"query": [query, 7]}],
            "/retrieve": [{"queries": {"a": query}}, {"queries": [query], "topk": []}],
            "/queries": [{"queries": 7, "k": 3}],
        }

    def over_limit(self) -> Bodies:
        query, long = self.popular(), "x" * (MAX_QUERY_CHARS + 1)
        return {
            "/search": [{"query": long}, *({"query": query, "top_n": num} for num in (-1, 0, MAX_TOP_N + 1))],
            "/batch_search": [{"query": [query] * (MAX_BATCH_QUERIES + 1)}],
            "/retrieve": [{"queries": [query], "topk": MAX_TOP_N + 1}],
            "/queries": [{"queries": [query, long], "k": 3}],
        }

    def mebibyte_query(self) -> Bodies:
        return {"/search": [{"query": (self.rng.choice(("x", "word ", "\u4e16")) * MEBIBYTE)[:MEBIBYTE]}]}

    def elsewhere(self) -> Case:
        wrong = (("POST", "/serach", 404), ("GET", "/search", 405), ("DELETE", "/retrieve", 405))
        method, route, status = self.rng.choice(wrong)
        return Case("no such route", route, b"", frozenset({status}), method=method)
