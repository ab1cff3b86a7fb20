import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from flashrag.config import Config
from flashrag.errors import SearchError, UserError
from flashrag.retriever.remote import RemoteRetriever
from flashrag.utils import get_retriever


def answers(query, num):
    return [{"id": f"{query}-{rank}", "contents": f"text {rank}"} for rank in range(num)]


async def batch_search(request):
    body = await request.json()
    assert body["return_score"] is True
    if "teapot" in body["query"]:
        return JSONResponse({"detail": "I am a teapot"}, status_code=418)
    num = min(body["top_n"], 3)
    found = [answers(query, num) for query in body["query"]]
    return JSONResponse([found, [[1.0 - rank / 4 for rank in range(num)]] * len(found)])


async def health(_):
    return JSONResponse({"status": "healthy", "documents": 38304})


async def metrics(_):
    return PlainTextResponse("")


ROUTES = [Route("/batch_search", batch_search, methods=["POST"]), Route("/metrics", metrics)]


@pytest.fixture(scope="module")
def url(serve):
    return serve(Starlette(routes=[*ROUTES, Route("/health", health)]))


@pytest.fixture
def remote(url):
    retriever = get_retriever(Config(config_dict={"retrieval_method": "remote", "remote_retriever_url": url}))
    assert isinstance(retriever, RemoteRetriever)
    yield retriever
    retriever.close()


def test_documents_and_scores_are_the_servers(remote):
    documents, scores = remote.search("zhou", 2, return_score=True)
    assert [(d.id, d.contents) for d in documents] == [("zhou-0", "text 0"), ("zhou-1", "text 1")]
    assert scores == [1.0, 0.75]
    assert (remote.method, remote.topk, len(remote.corpus)) == ("remote", 5, 38304)
    assert len(remote.search("zhou")) == 3  # what the server has


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_batches_keep_length_order_and_pairing(remote, count):
    queries = [f"q{number}" for number in range(count)]
    assert [found[0].id for found in remote.batch_search(queries, 1)] == [f"{query}-0" for query in queries]


def test_any_thread_may_search_one_with_a_running_loop_too(remote):
    async def inside():
        return remote.search("loop", 1)[0].id

    assert asyncio.run(inside()) == "loop-0"
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: remote.search(f"t{number}", 1)[0].id, range(64)))
    assert found == [f"t{number}-0" for number in range(64)]


def test_what_cannot_be_had_is_a_search_error(remote):
    with pytest.raises(SearchError, match="418"):
        remote.search("teapot")


def test_closing_ends_its_thread_and_may_be_repeated(url):
    values = {"retrieval_method": "remote", "remote_retriever_url": url}
    before = set(threading.enumerate())
    retriever = get_retriever(Config(config_dict=values))
    assert set(threading.enumerate()) > before
    retriever.close()
    retriever.close()
    assert set(threading.enumerate()) == before


def test_one_of_several_servers_may_be_away(url, closed_url):
    values = {"retrieval_method": "remote", "remote_retriever_url": [closed_url, url]}
    retriever = get_retriever(Config(config_dict=values))
    assert retriever.search("zhou", 1)[0].id == "zhou-0"
    retriever.close()


def test_no_server_and_another_kind_of_server_are_refused(serve, closed_url):
    for address, message in [
        (closed_url, "no retrieval server answers at remote_retriever_url="),
        ("not an address", "remote_retriever_url='not an address' is no"),
        (serve(Starlette(routes=ROUTES)), "remote_retriever_url=.*/health answered 404"),
        (
            serve(Starlette(routes=[*ROUTES, Route("/health", metrics)])),
            "remote_retriever_url: .*/health does not say how many documents it has",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            get_retriever(Config(config_dict={"retrieval_method": "remote", "remote_retriever_url": address}))
