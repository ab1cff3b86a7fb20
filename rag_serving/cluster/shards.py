"""An index in slices: the answer of one shard, and the merge of all answers into those of the whole index.

Equal scores are ordered by row, on a shard and in the merge, so the outcome does not depend on the slices.
Needs no encoder, no torch and no Ray. Does not cover: deployment and calls of shards (deployments.py), splitting an
index (flashrag.retriever.index_shards).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

from flashrag.errors import UserError
from flashrag.retriever import read_index, set_search_depth
from flashrag.retriever.index_shards import ShardCard

NO_ROW = -1  # faiss's padding
TIE_ROWS = 16  # requested in addition, to see the end of a tie


class RankedRows(NamedTuple):
    """Per query its best rows: `scores` (N, K) float32 and `rows` (N, K) int64, best first, -1 for missing rows."""

    scores: np.ndarray
    rows: np.ndarray


def best_first(ranked: RankedRows, num: int) -> RankedRows:
    """The best `num` columns: by score, equal scores by row, padding last.

    >>> best_first(RankedRows(np.array([[0.5, 0.9, 0.9]]), np.array([[0, 2, 1]])), 2).rows
    array([[1, 2]])
    """
    scores = np.where(ranked.rows == NO_ROW, -np.inf, ranked.scores)
    order = np.lexsort((ranked.rows, -scores), axis=-1)[:, :num]
    return RankedRows(np.take_along_axis(ranked.scores, order, 1), np.take_along_axis(ranked.rows, order, 1))


def merge(parts: Sequence[RankedRows], num: int) -> RankedRows:
    """The best `num` over all shards, each of which gave its own best `num`, or all that it holds."""
    scores = np.concatenate([part.scores for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    return best_first(RankedRows(scores, rows), num)


def search(index: faiss.Index, vectors: np.ndarray, num: int) -> RankedRows:
    """The best `num` rows of each vector. Of equal scores at the end of a list it takes the lowest rows.

    faiss keeps any of them, depending on the other vectors of the index. So this asks for more rows until the tie ends.
    """
    num = min(num, index.ntotal)
    asked = min(num + TIE_ROWS, index.ntotal)
    while True:
        ranked = RankedRows(*index.search(vectors, asked))
        cut_in_a_tie = (ranked.scores[:, num - 1] == ranked.scores[:, -1]) & (ranked.rows[:, -1] != NO_ROW)
        if asked == index.ntotal or not cut_in_a_tie.any():
            return best_first(ranked, num)
        asked = min(2 * asked, index.ntotal)


class Shard:
    """One slice of an index, in memory or memory-mapped."""

    def __init__(self, folder: Path, card: ShardCard, mmap: bool = False, nprobe: int | None = None) -> None:
        path = folder / card.file
        self._index = read_index(path, mmap)
        if self._index.ntotal != card.count:
            raise UserError(
                f"index_path: {path} holds {self._index.ntotal} vectors, but its card says {card.count}; "
                "split the index again"
            )
        set_search_depth(self._index, nprobe, None)
        self._row_offset = card.row_offset

    @property
    def dimension(self) -> int:
        return self._index.d

    def rank_rows(self, vectors: np.ndarray, num: int) -> RankedRows:
        """The slice's best `num` rows of each vector, as row numbers of the whole corpus."""
        ranked = search(self._index, vectors, num)
        return RankedRows(ranked.scores, np.where(ranked.rows == NO_ROW, NO_ROW, ranked.rows + self._row_offset))
