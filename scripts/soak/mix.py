"""The requests of a soak: seeded, most of them ordinary, many of them hostile, each with the answers that are right.

Popular questions come often (a cache answers them), rare ones seldom. Nothing is sent here (exchange.py).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
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
