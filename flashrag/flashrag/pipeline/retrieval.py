"""One way to search for every pipeline: a retrieval client, or a retriever in this process."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from flashrag.document import Document
from flashrag.episode import Passage, ToolResult

Search = Callable[[str], Awaitable[tuple[Passage, ...]]]


def as_search(retriever: Any, topk: int) -> Search:
    """A search for `topk` passages, best first, with scores where the retriever gives them.

    A `flashrag.client.RetrievalClient` is awaited; a local retriever of `flashrag.utils.get_retriever` searches in a
    thread. Any object with a `search(query)` that gives documents will do: awaited, or called with the number too.
    """
    if hasattr(retriever, "search_scored"):

        async def ask_server(query: str) -> tuple[Passage, ...]:
            return tuple(Passage(d.id, d.contents, score) for d, score in await retriever.search_scored(query, topk))

        return ask_server
    if hasattr(retriever, "rank"):

        async def rank_in_thread(query: str) -> tuple[Passage, ...]:
            (hits,) = await asyncio.to_thread(retriever.rank, [query], topk)
            return tuple(Passage(d.id, d.contents, score) for d, score in hits)

        return rank_in_thread

    async def search(query: str) -> tuple[Passage, ...]:
        if inspect.iscoroutinefunction(retriever.search):
            documents = await retriever.search(query)
        else:
            documents = await asyncio.to_thread(retriever.search, query, topk)
        return tuple(Passage(document.id, document.contents, None) for document in documents)

    return search


def as_result(passages: tuple[Passage, ...]) -> ToolResult:
    """What a search gives an episode; scores only where each passage has one."""
    scores = tuple(passage.score for passage in passages if passage.score is not None)
    return ToolResult(as_documents(passages), scores if len(scores) == len(passages) else ())


def as_documents(passages: tuple[Passage, ...]) -> tuple[Document, ...]:
    return tuple(Document(passage.id, passage.contents) for passage in passages)
