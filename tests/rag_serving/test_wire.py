import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.document import Document, Hit
from rag_serving import wire

A, B, C = (Hit(Document(name, f'"{name}"\ntext'), score) for name, score in (("a", 3.0), ("b", 2.0), ("c", 1.0)))
DOC = {name: {"id": name, "contents": f'"{name}"\ntext'} for name in "abc"}


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
