"""What every retriever inherits."""

import threading

import pytest

from flashrag.document import Document, Hit
from flashrag.retriever import Retriever


class Echo(Retriever):
    method, corpus, topk = "echo", (), 2

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def rank(self, queries, num):
        self.threads.add(threading.get_ident())
        return [[Hit(Document(query, "Wu"), 0.5)] * num for query in queries]


@pytest.mark.asyncio
async def test_it_is_awaited_as_the_client_is_and_searches_in_a_thread():
    echo = Echo()
    assert await echo.search_scored("zhou", 3) == [Hit(Document("zhou", "Wu"), 0.5)] * 3
    assert len(await echo.search_scored("zhou")) == 2
    assert threading.get_ident() not in echo.threads
