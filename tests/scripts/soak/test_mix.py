"""The mix of a soak: seeded, complete, and each request as hostile as its kind says."""

import itertools
import json
from collections import Counter

import pytest

from scripts.soak.mix import MAX_QUERY_CHARS, MEBIBYTE, Manner, Pool, cases, long_queries

QUESTIONS = [f"question {number}" for number in range(500)]
POOL = Pool(QUESTIONS, long_queries(QUESTIONS[:3]))


@pytest.fixture(scope="module")
def mix():
    return list(itertools.islice(cases(POOL, seed=1), 20_000))


def test_a_seed_fixes_the_mix(mix):
    assert list(itertools.islice(cases(POOL, seed=1), 100)) == mix[:100]
    assert list(itertools.islice(cases(POOL, seed=2), 100)) != mix[:100]


def test_every_kind_and_manner_comes(mix):
    assert len({case.kind for case in mix}) == 16
    assert {case.manner for case in mix} == set(Manner)
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
            assert set(case.queries) <= {*POOL.questions, *POOL.long}
            body = json.loads(case.body)
            sent = body.get("queries", body.get("query"))
            assert (sent,) == case.queries or tuple(sent) == case.queries


def test_long_queries_are_as_long_as_allowed(mix):
    assert [len(query) for query in POOL.long] == [MAX_QUERY_CHARS] * 3
    largest = {case.kind: len(case.body) for case in mix if "1 MiB" in case.kind}
    assert set(largest) == {"1 MiB query", "1 MiB of queries"}
    assert min(largest.values()) >= MEBIBYTE
