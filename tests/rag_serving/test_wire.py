import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flashrag.document import Document, Hit
from rag_serving import wire

A, B, C = (Hit(Document(name, f'"{name}"\ntext'), score) for name, score in (("a", 3.0), ("b", 2.0), ("c", 1.0)))
DOC = {name: {"id": name, "contents": f'"{name}"\ntext'} for name in "abc"}
MODELS = wire.request_models(max_query_chars=10, max_batch_queries=3, max_top_n=20)


def test_search():
    assert wire.search_json([A, B], return_score=False) == [DOC["a"], DOC["b"]]
    assert wire.search_json([A, B], return_score=True) == [[DOC["a"], DOC["b"]], [3.0, 2.0]]
    assert wire.search_json([], return_score=True) == [[], []]


# Zero to three queries: with exactly two, an answer in pairs and an answer per query look alike.
RANKED = [[A, B], [C], []]
DOCUMENTS = [[DOC["a"], DOC["b"]], [DOC["c"]], []]
SCORES = [[3.0, 2.0], [1.0], []]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_batch_search(count):
    assert wire.batch_search_json(RANKED[:count], return_score=False) == DOCUMENTS[:count]
    assert wire.batch_search_json(RANKED[:count], return_score=True) == [DOCUMENTS[:count], SCORES[:count]]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_retrieve(count):
    assert wire.retrieve_json(RANKED[:count], return_scores=False) == {"result": DOCUMENTS[:count]}
    assert wire.retrieve_json(RANKED[:count], return_scores=True) == {
        "result": [
            [{"document": DOC["a"], "score": 3.0}, {"document": DOC["b"], "score": 2.0}],
            [{"document": DOC["c"], "score": 1.0}],
            [],
        ][:count]
    }


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HITS = st.lists(st.builds(Hit, st.builds(Document, TEXT, TEXT), st.floats(allow_nan=False, allow_infinity=False)))


@given(ranked=st.lists(HITS, max_size=4))
def test_any_answer_comes_back_from_json_paired_as_it_was(ranked):
    def over_the_wire(value):
        return json.loads(json.dumps(value, ensure_ascii=False).encode())

    documents, scores = over_the_wire(wire.batch_search_json(ranked, return_score=True))
    assert [
        [Hit(Document(**document), score) for document, score in zip(found, some, strict=True)]
        for found, some in zip(documents, scores, strict=True)
    ] == ranked
    result = over_the_wire(wire.retrieve_json(ranked, return_scores=True))["result"]
    assert [[Hit(Document(**item["document"]), item["score"]) for item in found] for found in result] == ranked


@pytest.mark.parametrize(
    ("body", "queries", "topk"),
    [
        ({"queries": ["a", "b"], "topk": 3, "return_scores": True}, ["a", "b"], 3),  # Search-R1, verl, slime
        ({"queries": ["a"], "topk": None}, ["a"], None),
        ({"queries": ["a"]}, ["a"], None),
        ({"query": "a", "topk": 3, "return_scores": True}, ["a"], 3),  # SkyRL
        ({"query": "a", "top_k": 4}, ["a"], 4),  # rLLM
        ({"query": ["a", "b"]}, ["a", "b"], None),
        ({"queries": []}, [], None),
    ],
)
def test_the_dialects_of_retrieve(body, queries, topk):
    request = MODELS.retrieve.model_validate(body)
    assert (request.queries, request.topk) == (queries, topk)


def test_the_limits_are_inclusive():
    request = MODELS.search.model_validate({"query": "0123456789", "top_n": 20})
    assert (request.query, request.top_n, request.return_score) == ("0123456789", 20, False)
    assert MODELS.batch_search.model_validate({"query": ["a"] * 3}).top_n == 10


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("search", {"query": "0123456789x"}),
        ("search", {"query": "a", "top_n": 21}),
        ("search", {"query": "a", "top_n": 0}),
        ("search", {"query": "a", "top_n": -1}),
        ("search", {"query": "a", "top_n": 1.5}),
        ("search", {"query": None}),
        ("search", {"query": ["a"]}),
        ("search", {"top_n": 1}),
        ("batch_search", {"query": "a"}),
        ("batch_search", {"query": ["a"] * 4}),
        ("batch_search", {"query": ["a", None]}),
        ("batch_search", {"query": ["0123456789x"]}),
        ("retrieve", {"queries": ["a"], "topk": 0}),
        ("retrieve", {"queries": ["a"] * 4}),
        ("retrieve", {"query": "0123456789x"}),
        ("retrieve", {}),
    ],
)
def test_breaches_are_refused(model, body):
    with pytest.raises(ValidationError):
        getattr(MODELS, model).model_validate(body)
