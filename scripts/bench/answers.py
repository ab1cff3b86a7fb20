"""What a direct search says, and whether a server's answer is the same.

The direct search shares nothing with the server but the files: sentence-transformers encodes, and every passage is
scored. Passages whose scores differ by less than TOLERANCE may change places: batches of another shape round
differently. Does not cover: approximate indexes, whose answers depend on how they were probed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flashrag.corpus import read_lines
from flashrag.retriever import RetrieverSettings, resolve_model_folder
from scripts.bench.inputs import IndexOptions

TOLERANCE = 1e-4


class Ranking(NamedTuple):
    """One query's answer on any route: /queries sends no ids, and scores come only where they were asked for."""

    contents: list[str]
    ids: list[str] | None = None
    scores: list[float] | None = None


class Truth:
    """The exact score of every passage for each query of a pool."""

    def __init__(self, scores_QN: np.ndarray, queries: Sequence[str], ids: Sequence[str], contents: Sequence[str]):
        self.scores_QN, self.queries, self._ids = scores_QN, list(queries), list(ids)
        self._query_rows = {query: row for row, query in enumerate(queries)}
        self._rows = {text: row for row, text in enumerate(contents)}
        assert len(self._rows) == len(self._ids), "passages must differ in their text"

    def problem(self, query: str, num: int, ranking: Ranking) -> str | None:
        """What is wrong with a server's `num` best passages for `query`; None where nothing is."""
        scores_N = self.scores_QN[self._query_rows[query]]
        try:
            rows = [self._rows[text] for text in ranking.contents]
        except KeyError:
            return "a passage that the corpus does not hold"
        if ranking.ids is not None and [self._ids[row] for row in rows] != ranking.ids:
            return "the id of another passage"
        if (right := min(num, len(self._ids))) != len(rows) or right != len(set(rows)):
            return f"{len(rows)} passages, {len(set(rows))} different ones, instead of {right}"
        found = scores_N[rows]
        if ranking.scores is not None and not _close(ranking.scores, found):
            return "scores that are not the passages'"
        return None if _close(found, np.sort(scores_N)[::-1][: len(rows)]) else "not the best passages, best first"


def _close(left: Sequence[float] | np.ndarray, right: np.ndarray) -> bool:
    return len(left) == len(right) and np.allclose(left, right, rtol=0, atol=TOLERANCE)


def direct_truth(served: IndexOptions, queries: Sequence[str]) -> Truth:
    """Score every passage for every query, without the code that the server runs."""
    import faiss
    from sentence_transformers import SentenceTransformer

    folder = str(resolve_model_folder(served.model_path, "--model_path"))
    model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    model.max_seq_length = RetrieverSettings.model_fields["retrieval_query_max_length"].default
    index = faiss.read_index(str(served.index_path))
    queries_QD = model.encode(list(queries), normalize_embeddings=True, show_progress_bar=False)
    ids, contents = zip(*((line.id, line.contents) for _, line in read_lines(served.corpus_path)), strict=True)
    return Truth(queries_QD @ index.reconstruct_n(0, index.ntotal).T, queries, ids, contents)


def parse_rankings(route: str, scored: bool, payload: Any) -> list[Ranking]:
    """The answer to each query of one request; raises KeyError, TypeError or ValueError for any other shape."""
    match route:
        case "/search":
            pairs = [payload if scored else (payload, None)]
        case "/batch_search":
            pairs = zip(*payload, strict=True) if scored else [(documents, None) for documents in payload]
        case "/retrieve" if scored:
            pairs = [([hit["document"] for hit in hits], [hit["score"] for hit in hits]) for hits in payload["result"]]
        case "/retrieve":
            pairs = [(documents, None) for documents in payload["result"]]
        case "/queries":
            return [Ranking(contents) for _, contents in zip(payload["queries"], payload["answers"], strict=True)]
        case _:
            raise ValueError(f"no such route: {route}")
    return [Ranking([one["contents"] for one in some], [one["id"] for one in some], scores) for some, scores in pairs]
