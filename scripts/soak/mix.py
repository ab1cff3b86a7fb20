"""The requests of a soak: seeded, most of them ordinary, many of them hostile, each with the answers that are right.

Popular questions come often (a cache answers them), rare ones seldom. Pure: nothing is sent here (exchange.py).
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


Kind = Callable[[Pool, Random], Case]


def long_queries(questions: Sequence[str]) -> list[str]:
    """Each question, repeated up to the longest query that a server takes."""
    return [(f"{question} " * (MAX_QUERY_CHARS // len(question) + 1))[:MAX_QUERY_CHARS] for question in questions]


def cases(pool: Pool, seed: int) -> Iterator[Case]:
    """Requests without end."""
    rng = Random(seed)
    weights, kinds = zip(*_KINDS, strict=True)
    while True:
        (kind,) = rng.choices(kinds, weights)
        yield kind(pool, rng)


def _answered(kind: str, route: str, queries: Sequence[str], num: int, scored: bool) -> Case:
    """A request that must be answered, unless the server is busy or late."""
    body = {
        "/search": {"query": queries[0], "top_n": num, "return_score": scored},
        "/batch_search": {"query": queries, "top_n": num, "return_score": scored},
        "/retrieve": {"queries": queries, "topk": num, "return_scores": scored},
        "/queries": {"queries": queries, "k": num},
    }[route]
    return Case(kind, route, json.dumps(body).encode(), frozenset({OK, BUSY, LATE}), tuple(queries), num, scored)


def _search(pool: Pool, rng: Random) -> Case:
    return _answered("search", "/search", [pool.popular(rng)], rng.choice((1, 3, 5, 5, 5, 10)), rng.random() < 0.5)


def _of_many(kind: str, queries: Callable[[Pool, Random], list[str]]) -> Kind:
    def make(pool: Pool, rng: Random) -> Case:
        route = rng.choice(("/batch_search", "/retrieve", "/queries"))
        return _answered(kind, route, queries(pool, rng), rng.choice((1, 3, 5)), rng.random() < 0.5)

    return make


def _batch(pool: Pool, rng: Random) -> list[str]:
    """Sizes are spread evenly over the orders of magnitude; 1 % are the largest."""
    return [pool.popular(rng) for _ in range(round(LARGEST_BATCH ** min(1.0, 1.01 * rng.random())))]


def _mebibyte(pool: Pool, rng: Random) -> Case:
    queries = [rng.choice(pool.long) for _ in range(MEBIBYTE // MAX_QUERY_CHARS)]
    case = _of_many("1 MiB of queries", lambda *_: queries)(pool, rng)
    return replace(case, allowed=case.allowed | {413})


def _short_deadline(pool: Pool, rng: Random) -> Case:
    deadline_s = 10 ** rng.uniform(-4, -1)
    header = {"X-Request-Timeout": f"{deadline_s:.6f}"}
    return replace(_search(pool, rng), kind="short deadline", headers=header, deadline_s=deadline_s)


def _manners(kind: str, manner: Manner) -> Kind:
    kinds = (_search, _of_many("batch", _batch))
    return lambda pool, rng: replace(rng.choice(kinds)(pool, rng), kind=kind, manner=manner)


def _refused(kind: str, statuses: set[int], bodies_of: Callable[[str, Random], Mapping[str, Sequence[Any]]]) -> Kind:
    """A kind that must be refused: one of the bodies for a question, by route. Bytes are sent as they are."""

    def make(pool: Pool, rng: Random) -> Case:
        by_route = bodies_of(pool.popular(rng), rng)
        route, body = rng.choice([(route, body) for route, bodies in by_route.items() for body in bodies])
        return Case(kind, route, body if isinstance(body, bytes) else json.dumps(body).encode(), frozenset(statuses))

    return make


def _blank(query: str, rng: Random) -> Mapping[str, Sequence[Any]]:
    blank, queries = rng.choice(("", " ", "\n\t", "\u3000")), [query] * rng.randint(0, 8)
    queries.insert(rng.randint(0, len(queries)), blank)
    many = {"/retrieve": [{"queries": queries}], "/queries": [{"queries": queries, "k": 3}]}
    return {"/search": [{"query": blank}], "/batch_search": [{"query": queries}], **many}


def _malformed(query: str, _: Random) -> Mapping[str, Sequence[Any]]:
    whole = json.dumps({"query": query}).encode()
    odd = (b"\xff" + whole, b"[" * 5000, b"null", b'{"query":"\\ud800"}')
    return {"/search": [b"", b"{", whole[:-1], whole + whole, *odd]}


def _wrong_type(query: str, _: Random) -> Mapping[str, Sequence[Any]]:
    return {
        "/search": [
            {"query": [query]},
            {"query": None},
            {},
            [query],
            *({"query": query, "top_n": n} for n in ("x", 1.5)),
        ],
        "/batch_search": [{"query": query}, {"query": [query, 7]}],
        "/retrieve": [{"queries": {"a": query}}, {"queries": [query], "topk": []}],
        "/queries": [{"queries": 7, "k": 3}],
    }


def _over_limit(query: str, _: Random) -> Mapping[str, Sequence[Any]]:
    long = "x" * (MAX_QUERY_CHARS + 1)
    return {
        "/search": [{"query": long}, *({"query": query, "top_n": num} for num in (-1, 0, MAX_TOP_N + 1))],
        "/batch_search": [{"query": [query] * (MAX_BATCH_QUERIES + 1)}],
        "/retrieve": [{"queries": [query], "topk": MAX_TOP_N + 1}],
        "/queries": [{"queries": [query, long], "k": 3}],
    }


def _mebibyte_query(_: str, rng: Random) -> Mapping[str, Sequence[Any]]:
    return {"/search": [{"query": (rng.choice(("x", "word ", "\u4e16")) * MEBIBYTE)[:MEBIBYTE]}]}


def _elsewhere(_: Pool, rng: Random) -> Case:
    wrong = (("POST", "/serach", 404), ("GET", "/search", 405), ("DELETE", "/retrieve", 405))
    method, route, status = rng.choice(wrong)
    return Case("no such route", route, b"", frozenset({status}), method=method)


_KINDS: Sequence[tuple[float, Kind]] = (  # with their weights
    (67, _search),
    (4, _of_many("batch", _batch)),
    (2, _of_many("one query many times", lambda pool, rng: [pool.popular(rng)] * rng.randint(2, 64))),
    (0.2, lambda pool, rng: _answered("as many as allowed", "/search", [pool.popular(rng)], MAX_TOP_N, True)),
    (0.02, _mebibyte),
    (4, _short_deadline),
    (3, _manners("left before the answer", Manner.LEFT)),
    (3, _manners("left in the body", Manner.CUT)),
    (0.3, _manners("trickled body", Manner.TRICKLED)),
    (0.02, _manners("stalled body", Manner.STALLED)),
    (4, _refused("blank", {400}, _blank)),
    (4, _refused("malformed", {400, 422}, _malformed)),
    (4, _refused("wrong type", {422}, _wrong_type)),
    (3, _refused("over a limit", {422}, _over_limit)),
    (0.3, _refused("1 MiB query", {413, 422}, _mebibyte_query)),
    (1, _elsewhere),
)
