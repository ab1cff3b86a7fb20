"""The real application in process, over the real bm25 retriever; a predictable engine where it must block or fail."""

import asyncio
import json
from pathlib import Path

import pytest

import rag_serving
from flashrag.retriever import check_assets, load_retriever_from
from rag_serving.settings import read_settings


@pytest.fixture(scope="session")
def retriever(site):
    return load_retriever_from(check_assets(read_settings(site.config)))


def doc(site_passages: dict[str, str], key: str) -> dict[str, str]:
    return {"id": key, "contents": site_passages[key]}


@pytest.fixture(scope="session")
def passages(retriever):
    return {retriever.corpus[row].id: retriever.corpus[row].contents for row in range(len(retriever.corpus))}


@pytest.mark.asyncio
async def test_health_and_its_alias(serve, retriever):
    expected = {
        "status": "healthy",
        "retrievers": {"total": 2, "available": 2},
        "retrieval_method": "bm25",
        "documents": 8,
    }
    async with serve(retriever) as client:
        for path in ("/health", "/healthz"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.asyncio
async def test_search_in_both_score_modes(serve, retriever, passages):
    async with serve(retriever) as client:
        body = {"query": "radioactivity", "top_n": 5}
        assert (await client.post("/search", json=body)).json() == [doc(passages, "curie")]
        documents, scores = (await client.post("/search", json={**body, "return_score": True})).json()
        assert documents == [doc(passages, "curie")]
        assert scores == pytest.approx(retriever.search("radioactivity", 5, return_score=True)[1])
        assert (await client.post("/search", json={"query": "zebra", "return_score": True})).json() == [[], []]


QUERIES = ["radioactivity", "Italy", "France Paris"]
FOUND = ["curie", "rome", "paris"]


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [0, 1, 2, 3])
async def test_batch_search_and_retrieve_for_zero_to_three_queries(serve, retriever, passages, count):
    queries, best = QUERIES[:count], [[doc(passages, key)] for key in FOUND[:count]]
    scores = [some[:1] for some in retriever.batch_search(queries, 1, return_score=True)[1]]
    async with serve(retriever) as client:

        async def post(path: str, **body: object):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200
            return answer.json()

        assert await post("/batch_search", query=queries, top_n=1) == best
        assert await post("/batch_search", query=queries, top_n=1, return_score=True) == [best, scores]
        assert await post("/retrieve", queries=queries, topk=1) == {"result": best}
        assert await post("/retrieve", queries=queries, topk=1, return_scores=True) == {
            "result": [[{"document": found[0], "score": some[0]}] for found, some in zip(best, scores, strict=True)]
        }


@pytest.mark.asyncio
async def test_retrieve_without_topk_uses_the_retrievers_own(serve, retriever, monkeypatch):
    monkeypatch.setattr(retriever, "topk", 1)
    async with serve(retriever) as client:
        answer = await client.post("/retrieve", json={"query": "capital"})  # two passages hold the word
        assert [len(found) for found in answer.json()["result"]] == [1]


@pytest.mark.asyncio
async def test_adversarial_passages_come_over_byte_exactly(serve, retriever, passages):
    async with serve(retriever) as client:
        body = (await client.post("/search", json={"query": "oddity longword", "top_n": 10})).content
        found = {document["id"]: document["contents"] for document in json.loads(body.decode("utf-8"))}
    assert found == {key: passages[key] for key in ("nul", "long", "special", "rtl")}


@pytest.mark.asyncio
@pytest.mark.parametrize("blank", ["", " ", "\n\t\u3000"])
async def test_blank_queries_are_refused(serve, retriever, blank):
    async with serve(retriever) as client:
        for path, body, detail in [
            ("/search", {"query": blank}, "Query content cannot be empty"),
            ("/batch_search", {"query": ["a", blank]}, "Query content cannot be empty: query[1]"),
            ("/retrieve", {"queries": [blank, "a"]}, "Query content cannot be empty: queries[0]"),
        ]:
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()) == (400, {"detail": detail})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/search", b'{"query": "a", "top_n": 6}'),
        ("/search", b'{"query": "12345678901"}'),
        ("/batch_search", b'{"query": ["a", "a", "a", "a"]}'),
        ("/retrieve", b'{"queries": ["a"], "topk": 6}'),
        ("/search", b'{"query": "\\ud800"}'),
        ("/search", b'{"query": '),
        ("/search", b"\xff\xfe"),
        ("/search", b"[]"),
        ("/search", b""),
    ],
)
async def test_breaches_are_422_without_echoing_the_input(serve, retriever, path, body):
    async with serve(retriever, max_top_n=5, max_query_chars=10, max_batch_queries=3) as client:
        answer = await client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in ((422, 400) if body == b"\xff\xfe" else (422,))
        assert "detail" in answer.json()
        assert "12345678901" not in answer.text


@pytest.mark.asyncio
async def test_health_answers_while_every_thread_is_busy(serve, engine):
    engine.proceed.clear()
    async with serve(engine, num_retriever=2) as client:

        async def available() -> int:
            answer = await asyncio.wait_for(client.get("/health"), 5)
            return answer.json()["retrievers"]["available"]

        searches = [asyncio.create_task(client.post("/search", json={"query": f"q{n}", "top_n": 1})) for n in range(40)]
        while await available() > 0:
            await asyncio.sleep(0.001)
        assert not any(search.done() for search in searches)
        engine.proceed.set()
        answers = await asyncio.gather(*searches)
        assert [answer.json() for answer in answers] == [
            [{"id": f"q{n} 0", "contents": f"about q{n}"}] for n in range(40)
        ]
        assert await available() == 2


@pytest.mark.asyncio
async def test_a_failing_search_is_a_500_that_names_no_internals_and_the_thread_lives_on(serve, engine):
    async with serve(engine, num_retriever=1) as client:
        answer = await client.post("/search", json={"query": "boom"})
        assert (answer.status_code, answer.json()) == (500, {"detail": "the search failed: RuntimeError"})
        assert (await client.post("/search", json={"query": "x"})).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'rag_requests_total{route="/search",status="500"} 1.0' in metrics


@pytest.mark.asyncio
async def test_metrics_count_requests_queries_and_documents(serve, retriever):
    async with serve(retriever, num_retriever=3) as client:
        await client.post("/batch_search", json={"query": ["a", "b"]})
        await client.post("/search", json={"query": ""})
        for path in ("/no/such/1", "/no/such/2"):
            assert (await client.get(path)).status_code == 404
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = set(answer.text.splitlines())
    assert {
        'rag_requests_total{route="/batch_search",status="200"} 1.0',
        'rag_requests_total{route="/search",status="400"} 1.0',
        'rag_requests_total{route="unmatched",status="404"} 2.0',
        'rag_queries_total{route="/batch_search"} 2.0',
        'rag_request_seconds_count{route="/batch_search"} 1.0',
        "rag_documents 8.0",
        "rag_retrievers 3.0",
        "rag_retrievers_available 3.0",
    } <= lines


def test_openapi_is_the_committed_one(openapi):
    """After a wanted change: write the answer of /openapi.json into rag_serving/openapi.json."""
    assert openapi == json.loads((Path(rag_serving.__file__).parent / "openapi.json").read_text())
