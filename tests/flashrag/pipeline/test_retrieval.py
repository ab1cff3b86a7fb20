"""Every kind of retriever searches alike: a client, a local one in a thread, and whatever has a `search`."""

import threading

import pytest

from flashrag.document import Document, Hit
from flashrag.pipeline import Passage
from flashrag.pipeline.retrieval import as_search

WU = Document("1", "Wu")


class Client:
    async def search_scored(self, query: str, top_n: int) -> list[Hit]:
        return [Hit(Document(query, "Wu"), 0.5)] * top_n


class Local:
    def __init__(self) -> None:
        self.threads: set[int] = set()

    def rank(self, queries: list[str], num: int) -> list[list[Hit]]:
        self.threads.add(threading.get_ident())
        return [[Hit(Document(query, "Wu"), 0.5)] * num for query in queries]


class Awaited:
    async def search(self, query: str) -> list[Document]:
        return [Document(query, "Wu")]


class Called:
    def search(self, query: str, num: int) -> list[Document]:
        return [Document(query, "Wu")] * num


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("retriever", "count", "score"), [(Client(), 3, 0.5), (Local(), 3, 0.5), (Awaited(), 1, None), (Called(), 3, None)]
)
async def test_passages_come_with_the_scores_there_are(retriever: object, count: int, score: float | None):
    assert await as_search(retriever, 3)("zhou") == (Passage("zhou", "Wu", score),) * count


@pytest.mark.asyncio
async def test_a_local_retriever_searches_in_a_thread():
    local = Local()
    await as_search(local, 1)("zhou")
    assert threading.get_ident() not in local.threads
