"""The requests of a soak: seeded, most of them ordinary, many of them hostile, each with the answers that are right.

Popular questions come often (a cache answers them), rare ones seldom. Pure: nothing is sent here (sending.py).
"""

import json
from collections.abc import Callable, Iterator, Sequence
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
    """How a request is sent."""

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

    def popular(self, rng: Random) -> str:
        """A question; half of the time it is one of the first 6 %."""
        return self.questions[int(len(self.questions) * rng.random() ** 4)]


def long_queries(questions: Sequence[str]) -> list[str]:
    """Each question, repeated up to the longest query that a server takes."""
    return [(f"{question} " * (MAX_QUERY_CHARS // len(question) + 1))[:MAX_QUERY_CHARS] for question in questions]


def cases(pool: Pool, seed: int) -> Iterator[Case]:
    """Requests without end."""
    rng = Random(seed)
    kinds, weights = zip(*_WEIGHTS.items(), strict=True)
    while True:
        (kind,) = rng.choices(kinds, weights)
        yield kind(pool, rng)


def _search(pool: Pool, rng: Random) -> Case:
    query, num, scored = pool.popular(rng), rng.choice((1, 3, 5, 5, 5, 10)), rng.random() < 0.5
    body = {"query": query, "top_n": num, "return_score": scored}
    return Case("search", "/search", _json(body), frozenset({OK, BUSY, LATE}), (query,), num, scored)


def _batch(pool: Pool, rng: Random) -> Case:
    """One of the routes for many queries; sizes are spread evenly over the orders of magnitude, 1 % are the largest."""
    size = round(LARGEST_BATCH ** min(1.0, 1.01 * rng.random()))
    return _of_many("batch", [pool.popular(rng) for _ in range(size)], rng)


def _repeated(pool: Pool, rng: Random) -> Case:
    return _of_many("one query many times", [pool.popular(rng)] * rng.randint(2, 64), rng)


def _mebibyte_of_queries(pool: Pool, rng: Random) -> Case:
    queries = [rng.choice(pool.long) for _ in range(MEBIBYTE // MAX_QUERY_CHARS)]
    case = _of_many("1 MiB of queries", queries, rng)
    return replace(case, allowed=case.allowed | {413})


def _of_many(kind: str, queries: list[str], rng: Random) -> Case:
    num, scored = rng.choice((1, 3, 5)), rng.random() < 0.5
    route, body = rng.choice(
        (
            ("/batch_search", {"query": queries, "top_n": num, "return_score": scored}),
            ("/retrieve", {"queries": queries, "topk": num, "return_scores": scored}),
            ("/queries", {"queries": queries, "k": num}),
        )
    )
    return Case(kind, route, _json(body), frozenset({OK, BUSY, LATE}), tuple(queries), num, scored)


def _deep(pool: Pool, rng: Random) -> Case:
    query = pool.popular(rng)
    body = {"query": query, "top_n": MAX_TOP_N, "return_score": True}
    return Case("as many as allowed", "/search", _json(body), frozenset({OK, BUSY, LATE}), (query,), MAX_TOP_N, True)


def _short_deadline(pool: Pool, rng: Random) -> Case:
    deadline_s = 10 ** rng.uniform(-4, -1)
    header = {"X-Request-Timeout": f"{deadline_s:.6f}"}
    return replace(_search(pool, rng), kind="short deadline", headers=header, deadline_s=deadline_s)


def _manners(kind: str, manner: Manner) -> Callable[[Pool, Random], Case]:
    return lambda pool, rng: replace(rng.choice((_search, _batch))(pool, rng), kind=kind, manner=manner)


def _blank(pool: Pool, rng: Random) -> Case:
    blank = rng.choice(("", " ", "\n\t", "\u3000"))
    queries = [pool.popular(rng) for _ in range(rng.randint(0, 8))]
    queries.insert(rng.randint(0, len(queries)), blank)
    route, body = rng.choice(
        (
            ("/search", {"query": blank}),
            ("/batch_search", {"query": queries}),
            ("/retrieve", {"queries": queries}),
            ("/queries", {"queries": queries, "k": 3}),
        )
    )
    return _refused("blank", route, _json(body), 400)


def _malformed(pool: Pool, rng: Random) -> Case:
    whole = _json({"query": pool.popular(rng)})
    body = rng.choice(
        (b"", b"{", whole[:-1], whole + whole, b"\xff" + whole, b"[" * 5000, b"null", b'{"query":"\\ud800"}')
    )
    return _refused("malformed", "/search", body, 400, 422)


def _wrong_type(pool: Pool, rng: Random) -> Case:
    query = pool.popular(rng)
    route, body = rng.choice(
        (
            ("/search", {"query": [query]}),
            ("/search", {"query": None}),
            ("/search", {"query": query, "top_n": "many"}),
            ("/search", {"query": query, "top_n": 1.5}),
            ("/search", {}),
            ("/search", [query]),
            ("/batch_search", {"query": query}),
            ("/batch_search", {"query": [query, 7]}),
            ("/retrieve", {"queries": {"a": query}}),
            ("/retrieve", {"queries": [query], "topk": []}),
            ("/queries", {"queries": 7, "k": 3}),
        )
    )
    return _refused("wrong type", route, _json(body), 422)


def _over_limit(pool: Pool, rng: Random) -> Case:
    query = pool.popular(rng)
    route, body = rng.choice(
        (
            ("/search", {"query": query, "top_n": 0}),
            ("/search", {"query": query, "top_n": MAX_TOP_N + 1}),
            ("/search", {"query": query, "top_n": -1}),
            ("/search", {"query": "x" * (MAX_QUERY_CHARS + 1)}),
            ("/batch_search", {"query": [query] * (MAX_BATCH_QUERIES + 1)}),
            ("/retrieve", {"queries": [query], "topk": MAX_TOP_N + 1}),
            ("/queries", {"queries": [query, "x" * (MAX_QUERY_CHARS + 1)], "k": 3}),
        )
    )
    return _refused("over a limit", route, _json(body), 422)


def _mebibyte_query(_: Pool, rng: Random) -> Case:
    query = rng.choice(("x", "word ", "\u4e16")) * MEBIBYTE
    return _refused("1 MiB query", "/search", _json({"query": query[:MEBIBYTE]}), 413, 422)


def _elsewhere(_: Pool, rng: Random) -> Case:
    method, route, status = rng.choice(
        (("POST", "/serach", 404), ("GET", "/search", 405), ("DELETE", "/retrieve", 405))
    )
    return replace(_refused("no such route", route, b"", status), method=method)


def _refused(kind: str, route: str, body: bytes, *statuses: int) -> Case:
    return Case(kind, route, body, frozenset(statuses))


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


_WEIGHTS: dict[Callable[[Pool, Random], Case], float] = {
    _search: 67,
    _batch: 4,
    _repeated: 2,
    _deep: 0.2,
    _mebibyte_of_queries: 0.02,
    _short_deadline: 4,
    _manners("left before the answer", Manner.LEFT): 3,
    _manners("left in the body", Manner.CUT): 3,
    _manners("trickled body", Manner.TRICKLED): 0.3,
    _manners("stalled body", Manner.STALLED): 0.02,
    _blank: 4,
    _malformed: 4,
    _wrong_type: 4,
    _over_limit: 3,
    _mebibyte_query: 0.3,
    _elsewhere: 1,
}
