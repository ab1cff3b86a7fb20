"""Requests made from the OpenAPI document, sound and broken, and bodies that no schema describes: never a 5xx, never a
status that the document does not name. `RESEARCH_FUZZ_CASES` sets how many are made (the closing measurement: 5,000).
"""

import json
import os
from contextlib import suppress

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from flashrag.retriever import check_assets, load_retriever_from
from rag_serving.app import create_app
from rag_serving.gate import SEARCH_ROUTES
from rag_serving.settings import read_settings
from rag_serving.workers import ThreadWorkers

CASES = int(os.environ.get("RESEARCH_FUZZ_CASES", "200"))
SHARE = CASES // len(SEARCH_ROUTES) // len(schemathesis.GenerationMode)  # the other routes have no parameters
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
QUICKLY = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def url(site, real_server):
    """A real server over the real bm25 index, under uvicorn."""
    limits = read_settings(site.with_config(max_batch_queries=20, max_query_chars=200))
    workers = ThreadWorkers(lambda: load_retriever_from(check_assets(limits)), 2)
    with real_server(create_app(limits, workers)) as address:
        yield address


@pytest.fixture(scope="module")
def document(url):
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
@pytest.mark.timeout(3600)
def test_the_document_holds(document, mode):
    operations = [result.ok() for result in document.get_all_operations()]
    assert len(operations) == len(SEARCH_ROUTES) + 3
    for operation in operations:

        @settings(max_examples=SHARE, **QUICKLY)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable):  # a route without parameters has no broken request
            check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["query", "queries", "top_n"]), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def client(url):
    with httpx.Client(base_url=url) as client:
        yield client


@settings(max_examples=CASES // 4, **QUICKLY)
@given(
    path=st.sampled_from(sorted(SEARCH_ROUTES)),
    body=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60),
    content_type=st.sampled_from(["application/json", "text/plain", "application/x-www-form-urlencoded", ";"]),
)
def test_no_body_is_a_server_error(client, path, body, content_type):
    answer = client.post(path, content=body, headers={"content-type": content_type})
    assert answer.status_code in (200, 400, 422), (body, answer.text)
    assert answer.status_code == 200 or "detail" in answer.json()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"query": ' + b"[" * 100_000,
        b'{"query": "a", "top_n": 1' + b"0" * 5000 + b"}",
        b'{"query": "a", "top_n": NaN}',
        b'{"query": "a", "top_n": 1e999}',
        b'{"query": "a", "top_n": 5, "x": -Infinity}',
        b'{"query": "\\udc00"}',
        b'{"query": "\xff"}',
        b'\xef\xbb\xbf{"query": "a"}',
        b'{"query": "a"}' * 2,
        b'{"query": "\x00"}',
        '{"query": "a"}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_hostile_bodies_are_the_callers_mistake(client, body):
    answer = client.post("/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 422), answer.text
