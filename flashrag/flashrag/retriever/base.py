"""The interface of every retriever.

Does not cover: how passages are ranked (dense.py, bm25.py, hybrid.py, reranker.py, remote.py), batching the queries of
several callers (the server's queue).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

from flashrag.document import Hit


@dataclass(frozen=True)
class PassageCount:
    """The number of passages that are not in one corpus of this process: only `len()` is known."""

    count: int

    def __len__(self) -> int:
        return self.count


class Retriever(ABC):
    """Ranks the passages of one corpus against queries. Safe to call from several threads at once."""

    method: str
    corpus: Sized
    topk: int

    @abstractmethod
    def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        """The best `num` hits of each query, best first, in the order of the queries.

        A list is shorter than `num` where the index has fewer hits, and never holds a passage twice.
        """

    async def search_scored(self, query: str, top_n: int | None = None) -> list[Hit]:
        """The best hits for a query, by default `topk` of them, as `flashrag.client.RetrievalClient` gives them.

        Searches in a thread, so that the event loop goes on meanwhile.
        """
        (hits,) = await asyncio.to_thread(self.rank, [query], self.topk if top_n is None else top_n)
        return hits

    def close(self) -> None:  # noqa: B027  (most retrievers hold nothing)
        """Release resources outside this process, such as connections."""

    def search(self, query: str, num: int | None = None, return_score: bool = False) -> Any:
        """FlashRAG's single search: documents, or (documents, scores). `num` defaults to `retrieval_topk`."""
        documents, scores = self.batch_search([query], num, return_score=True)
        return (documents[0], scores[0]) if return_score else documents[0]

    def batch_search(self, queries: Sequence[str], num: int | None = None, return_score: bool = False) -> Any:
        """FlashRAG's batch search: documents per query, or (documents per query, scores per query)."""
        num = self.topk if num is None else num
        if num < 1:
            raise ValueError(f"num is {num}; ask for at least one document")
        if isinstance(queries, str):  # as in FlashRAG; otherwise each letter would be a query
            queries = [queries]
        ranked = self.rank(queries, num) if queries else []
        documents = [[hit.document for hit in hits] for hits in ranked]
        return (documents, [[hit.score for hit in hits] for hits in ranked]) if return_score else documents
