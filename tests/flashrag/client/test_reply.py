"""The reply parser: what it takes, and that nothing else gets through mispaired."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.client.reply import parse_documents, parse_ranked, parse_scored
from flashrag.document import Document, Hit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "contents", "x"]), inner),
    max_leaves=12,
)
DOCUMENTS = st.builds(Document, st.text(max_size=5), st.text(max_size=20))
HITS = st.builds(Hit, DOCUMENTS, st.floats(allow_nan=False, allow_infinity=False))
RANKED = st.lists(st.lists(HITS, max_size=4), max_size=4)


def documents_json(hits: list[Hit]) -> list[dict[str, str]]:
    return [{"id": hit.document.id, "contents": hit.document.contents} for hit in hits]


def ranked_json(ranked: list[list[Hit]]) -> Any:
    payload = [[documents_json(hits) for hits in ranked], [[hit.score for hit in hits] for hits in ranked]]
    return json.loads(json.dumps(payload))


@given(RANKED)
def test_what_a_server_sends_is_read_back(ranked: list[list[Hit]]):
    assert parse_ranked(ranked_json(ranked), len(ranked), top_n=4) == ranked
    for hits in ranked:
        assert parse_scored([documents_json(hits), [hit.score for hit in hits]], top_n=4) == hits
        assert parse_documents(documents_json(hits), top_n=4) == [hit.document for hit in hits]


@given(RANKED, st.data())
def test_a_reply_with_an_entry_too_many_or_too_few_is_refused(ranked: list[list[Hit]], data: st.DataObject):
    payload = ranked_json(ranked)
    lists = [payload[0], payload[1], *payload[0], *payload[1]]
    place = data.draw(st.sampled_from(lists))
    if place and data.draw(st.booleans()):
        place.pop(data.draw(st.integers(0, len(place) - 1)))
    else:
        place.insert(0, place[0] if place else 1.0)
    with pytest.raises(ValueError, match="expected"):
        parse_ranked(payload, len(ranked), top_n=4)


@given(JSON, st.integers(0, 3), st.integers(1, 3))
def test_any_other_json_is_a_value_error_or_well_formed(payload: Any, num_queries: int, top_n: int):
    for parse in (
        lambda: [[Hit(document, 0.0) for document in parse_documents(payload, top_n)]],
        lambda: [parse_scored(payload, top_n)],
        lambda: parse_ranked(payload, num_queries, top_n),
    ):
        try:
            ranked = parse()
        except ValueError:
            continue
        assert all(len(hits) <= top_n for hits in ranked)
        assert all(isinstance(hit.document.id, str) and isinstance(hit.score, float) for hits in ranked for hit in hits)


@pytest.mark.parametrize("score", ["1", None, True, float("nan"), float("inf"), [1], 10**400])
def test_a_score_is_a_finite_number(score: object):
    with pytest.raises(ValueError, match="finite numbers"):
        parse_scored([[{"id": "1", "contents": "x"}], [score]], top_n=5)


def test_more_documents_than_asked_for_are_refused():
    with pytest.raises(ValueError, match="at most 1 objects"):
        parse_documents([{"id": "1", "contents": "x"}] * 2, top_n=1)
