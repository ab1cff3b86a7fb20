"""What the clients of other projects send, byte for byte, and what they read: shapes from their sources.

The bodies are written as `requests` and `aiohttp` write them (json.dumps with its spaces).
"""

import json

import pytest

ONE = b'{"id":"a 0","contents":"about a"}'
TWO = b'{"id":"a 1","contents":"about a"}'
B_ONE = b'{"id":"b 0","contents":"about b"}'
B_TWO = b'{"id":"b 1","contents":"about b"}'


def scored(document: bytes, score: bytes) -> bytes:
    return b'{"document":%s,"score":%s}' % (document, score)


PAIRS = b"[%s,%s]" % (scored(ONE, b"2.0"), scored(TWO, b"1.0"))
B_PAIRS = b"[%s,%s]" % (scored(B_ONE, b"2.0"), scored(B_TWO, b"1.0"))
CLIENTS = {
    "ReSearch's rollout": ("/search", {"query": "a", "top_n": 2}, b"[%s,%s]" % (ONE, TWO)),
    "FlashRAG's remote retriever, one query": (
        "/search",
        {"query": "a", "top_n": 2, "return_score": True},
        b"[[%s,%s],[2.0,1.0]]" % (ONE, TWO),
    ),
    "FlashRAG's remote retriever, several": (
        "/batch_search",
        {"query": ["a", "b"], "top_n": 2, "return_score": True},
        b"[[[%s,%s],[%s,%s]],[[2.0,1.0],[2.0,1.0]]]" % (ONE, TWO, B_ONE, B_TWO),
    ),
    "ReSearch's batch": (
        "/batch_search",
        {"query": ["a", "b"], "top_n": 2},
        b"[[%s,%s],[%s,%s]]" % (ONE, TWO, B_ONE, B_TWO),
    ),
    "Search-R1 and verl's search tool": (
        "/retrieve",
        {"queries": ["a", "b"], "topk": 2, "return_scores": True},
        b'{"result":[%s,%s]}' % (PAIRS, B_PAIRS),
    ),
    # Their own server mixes up documents and scores here: no scores, exactly two queries.
    "Search-R1 without scores": (
        "/retrieve",
        {"queries": ["a", "b"], "topk": 2, "return_scores": False},
        b'{"result":[[%s,%s],[%s,%s]]}' % (ONE, TWO, B_ONE, B_TWO),
    ),
    "slime": ("/retrieve", {"queries": ["a"], "topk": 1, "return_scores": False}, b'{"result":[[%s]]}' % ONE),
    "torchtitan's search_r1": (
        "/retrieve",
        {"queries": ["a"], "topk": 2, "return_scores": True},
        b'{"result":[%s]}' % PAIRS,
    ),
    "SkyRL": (
        "/retrieve",
        {"query": "a", "topk": 2, "return_scores": True},
        b'{"result":[%s]}' % PAIRS,
    ),
    "SkyRL, a list": ("/retrieve", {"query": ["a"], "topk": 1, "return_scores": False}, b'{"result":[[%s]]}' % ONE),
    "rLLM": ("/retrieve", {"query": "a", "top_k": 1}, b'{"result":[[%s]]}' % ONE),
    "R1-Searcher": (
        "/queries",
        {"queries": ["a", "b"], "k": 2},
        b'{"queries":["a","b"],"answers":[["about a","about a"],["about b","about b"]]}',
    ),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("peer", CLIENTS)
async def test_a_peers_client_gets_the_bytes_that_it_reads(serve, engine, peer):
    path, body, expected = CLIENTS[peer]
    async with serve(engine) as client:
        content = json.dumps(body).encode()
        answer = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.content == expected


@pytest.mark.asyncio
async def test_agent_lightnings_health_check(serve, engine):
    async with serve(engine) as client:
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize("scores", [False, True])
async def test_any_number_of_queries_keeps_order_and_length(serve, engine, count, scores):
    queries = [f"q{number}" for number in range(count)]
    documents = [[{"id": f"{query} 0", "contents": f"about {query}"}] for query in queries]
    async with serve(engine) as client:
        answer = await client.post("/batch_search", json={"query": queries, "top_n": 1, "return_score": scores})
        assert answer.json() == ([documents, [[1.0]] * count] if scores else documents)
        answer = await client.post("/retrieve", json={"queries": queries, "topk": 1, "return_scores": scores})
        pairs = [[{"document": document, "score": 1.0} for document in found] for found in documents]
        assert answer.json() == {"result": pairs if scores else documents}
        answer = await client.post("/queries", json={"queries": queries, "k": 1})
        assert answer.json() == {"queries": queries, "answers": [[f"about {query}"] for query in queries]}
