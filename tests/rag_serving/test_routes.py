"""What a request may hold, over an engine that answers anything: the dialects, and the limits with their edges."""

import json

import pytest

LIMITS = {"max_query_chars": 10, "max_batch_queries": 3, "max_top_n": 20, "max_queue_queries": 3}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("body", "queries", "topk"),
    [
        ({"queries": ["a", "b"], "topk": 3, "return_scores": True}, ["a", "b"], 3),  # Search-R1, verl, slime
        ({"queries": ["a"], "topk": None}, ["a"], 5),  # the engine's own number
        ({"queries": ["a"]}, ["a"], 5),
        ({"query": "a", "topk": 3, "return_scores": True}, ["a"], 3),  # SkyRL
        ({"query": "a", "top_k": 4}, ["a"], 4),  # rLLM
        ({"query": ["a", "b"]}, ["a", "b"], 5),
        ({"queries": []}, [], 5),
    ],
)
async def test_the_dialects_of_retrieve(serve, engine, body, queries, topk):
    async with serve(engine, **LIMITS) as client:
        answer = await client.post("/retrieve", json=body)
    assert answer.status_code == 200
    assert [len(found) for found in answer.json()["result"]] == [topk] * len(queries)
    assert engine.batches == ([(queries, topk)] if queries else [])


@pytest.mark.asyncio
async def test_the_limits_are_inclusive_and_ten_documents_the_default(serve, engine):
    async with serve(engine, **LIMITS) as client:
        answer = await client.post("/search", json={"query": "0123456789", "top_n": 20})
        assert (answer.status_code, len(answer.json())) == (200, 20)
        assert len((await client.post("/search", json={"query": "a"})).json()) == 10
        answer = await client.post("/batch_search", json={"query": ["a", "b", "c"]})
        assert [len(found) for found in answer.json()] == [10] * 3
        answer = await client.post("/queries", json={"queries": ["a"] * 3, "k": 20})
        assert [len(found) for found in answer.json()["answers"]] == [20] * 3


BREACHES = [
    ("/search", {"query": "0123456789x"}),
    ("/search", {"query": "a", "top_n": 21}),
    ("/search", {"query": "a", "top_n": 0}),
    ("/search", {"query": "a", "top_n": -1}),
    ("/search", {"query": "a", "top_n": 1.5}),
    ("/search", {"query": None}),
    ("/search", {"query": ["a"]}),
    ("/search", {"top_n": 1}),
    ("/batch_search", {"query": "a"}),
    ("/batch_search", {"query": ["a"] * 4}),
    ("/batch_search", {"query": ["a", None]}),
    ("/batch_search", {"query": ["0123456789x"]}),
    ("/retrieve", {"queries": ["a"], "topk": 0}),
    ("/retrieve", {"queries": ["a"] * 4}),
    ("/retrieve", {"query": "0123456789x"}),
    ("/retrieve", {}),
    ("/queries", {"queries": "a"}),
    ("/queries", {"queries": ["a"] * 4}),
    ("/queries", {"queries": ["a"], "k": 21}),
]


@pytest.mark.asyncio
async def test_breaches_are_refused(serve, engine):
    async with serve(engine, **LIMITS) as client:
        for path, body in BREACHES:
            assert (await client.post(path, json=body)).status_code == 422, (path, body)
    assert engine.batches == []


UNKNOWN_KEYS = [
    ("/search", {"query": "a", "topk": 3}, "unknown key 'topk'; did you mean 'top_n'?"),
    ("/search", {"query": "a", "top_k": 3}, "unknown key 'top_k'; did you mean 'top_n'?"),
    ("/search", {"query": "a", "k": 3}, "unknown key 'k'; did you mean 'top_n'?"),
    ("/search", {"query": "a", "n": 3}, "unknown key 'n'; did you mean 'top_n'?"),
    ("/search", {"queries": ["a"]}, "unknown key 'queries'; did you mean 'query'?"),
    ("/search", {"query": "a", "return_scores": True}, "unknown key 'return_scores'; did you mean 'return_score'?"),
    ("/batch_search", {"query": ["a"], "topk": 3}, "unknown key 'topk'; did you mean 'top_n'?"),
    ("/batch_search", {"queries": ["a"]}, "unknown key 'queries'; did you mean 'query'?"),
    ("/batch_search", {"query": ["a"], "x": 1}, "unknown key 'x'; known keys: query, return_score, top_n"),
    ("/retrieve", {"queries": ["a"], "top_n": 3}, "unknown key 'top_n'; did you mean 'topk'?"),
    ("/retrieve", {"queries": ["a"], "k": 3}, "unknown key 'k'; did you mean 'topk'?"),
    (
        "/retrieve",
        {"queries": ["a"], "return_score": True},
        "unknown key 'return_score'; did you mean 'return_scores'?",
    ),
    ("/queries", {"queries": ["a"], "topk": 3}, "unknown key 'topk'; did you mean 'k'?"),
    (
        "/search",
        {"query": "a", "\udc00" * 99: 1},
        f"unknown key {chr(0xDC00) * 60!r}; known keys: query, return_score, top_n",
    ),
]


@pytest.mark.asyncio
async def test_an_unknown_key_is_refused_with_the_routes_own(serve, engine):
    async with serve(engine, **LIMITS) as client:
        for path, body, problem in UNKNOWN_KEYS:
            answer = await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()) == (
                422,
                {"detail": [{"type": "unknown_key", "loc": ["body"], "msg": problem}]},
            )
    assert engine.batches == []


@pytest.mark.asyncio
@pytest.mark.parametrize("body", [{"query": "a", "queries": ["b"]}, {"query": "a", "topk": 1, "top_k": 2}])
async def test_two_names_of_one_thing_are_refused(serve, engine, body):
    async with serve(engine, **LIMITS) as client:
        assert (await client.post("/retrieve", json=body)).status_code == 422
