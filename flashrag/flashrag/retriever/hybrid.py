"""Hybrid retrieval: the lists of several retrievers, fused by their reciprocal ranks.

A document at rank r of a list (ranks from 1) gains 1 / (k + r), and its score is the sum over the lists: a document
that two retrievers find beats one that a single retriever finds a little higher. The retrievers' own scores cannot be
compared, and are not used. Source: Cormack, Clarke and Büttcher, SIGIR 2009 (k = 60).
"""

from collections.abc import Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from math import fsum

from flashrag.document import Document, Hit
from flashrag.retriever.base import PassageCount, Retriever

RRF_K = 60
CONCURRENT_BATCHES = 16  # of several callers; each retriever limits its own threads


class HybridRetriever(Retriever):
    """Asks every retriever for its `topk` best, or for as many as the caller wants if that is more."""

    def __init__(self, retrievers: Sequence[Retriever], topk: int, rrf_k: int = RRF_K) -> None:
        self.method = "+".join(retriever.method for retriever in retrievers)
        self.corpus = joint_corpus([retriever.corpus for retriever in retrievers])
        self.topk = topk
        self._retrievers = tuple(retrievers)
        self._rrf_k = rrf_k
        self._pool = ThreadPoolExecutor(CONCURRENT_BATCHES * len(self._retrievers), "hybrid")

    def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        if not queries:
            return []
        searches = [self._pool.submit(one.rank, queries, max(num, one.topk)) for one in self._retrievers]
        rankings = [search.result() for search in searches]
        return [fuse(lists, self._rrf_k)[:num] for lists in zip(*rankings, strict=True)]


def joint_corpus(corpora: Sequence[Sized]) -> Sized:
    """The one corpus that all of them are, or the number of passages in all of them together."""
    shared = all(corpus is corpora[0] for corpus in corpora)
    return corpora[0] if shared else PassageCount(sum(map(len, corpora)))


def fuse(lists: Sequence[Sequence[Hit]], k: int = RRF_K) -> list[Hit]:
    """Every document of the lists once, by the sum of its reciprocal ranks.

    Two documents are the same if id and contents are equal. Among equal sums, the document with the best single rank
    comes first, then the one from the earlier list.

    >>> a, b = Document("a", ""), Document("b", "")
    >>> [(hit.document.id, round(hit.score, 4)) for hit in fuse([[Hit(a, 9.0), Hit(b, 8.0)], [Hit(b, 0.1)]])]
    [('b', 0.0325), ('a', 0.0164)]
    """
    ranks: dict[Document, list[tuple[int, int]]] = {}
    for number, hits in enumerate(lists):
        for rank, hit in enumerate(hits, start=1):
            ranks.setdefault(hit.document, []).append((rank, number))
    # fsum does not depend on the order of the lists, so equal sums compare as equal.
    scores = {document: fsum(1 / (k + rank) for rank, _ in places) for document, places in ranks.items()}
    order = sorted(ranks, key=lambda document: (-scores[document], min(ranks[document])))
    return [Hit(document, scores[document]) for document in order]
