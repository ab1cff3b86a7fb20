"""Dense retrieval: a sentence encoder and a faiss index of unit vectors. Importing this module loads faiss and torch.

A faiss index on the CPU is searched by several threads at once, one on GPUs by one at a time (GPU faiss is not
thread-safe).
"""

import contextlib
import threading
from collections.abc import Sequence

import faiss
import numpy as np

from flashrag.corpus import Corpus
from flashrag.document import Hit
from flashrag.retriever.base import Retriever
from flashrag.retriever.encoder import Encoder
from flashrag.retriever.faiss_index import on_gpus
from flashrag.retriever.index_check import check_size
from flashrag.retriever.settings import RetrieverSettings


class DenseRetriever(Retriever):
    def __init__(
        self,
        settings: RetrieverSettings,
        index: faiss.Index,
        corpus: Corpus,
        encoder: Encoder,
        query_instruction: str,
    ) -> None:
        check_size(index, corpus, encoder)
        self.method = settings.retrieval_method
        self.corpus = self._corpus = corpus
        self.topk = settings.retrieval_topk
        self._is_l2 = index.metric_type == faiss.METRIC_L2
        self._index = on_gpus(index) if settings.faiss_gpu else index
        self._index_guard = threading.Lock() if settings.faiss_gpu else contextlib.nullcontext()
        self._encoder = encoder
        self._query_instruction = query_instruction
        self._batch_size = settings.retrieval_batch_size

    def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        scores_NK, rows_NK = self.rank_rows(self.encode_queries(queries), num)
        return [
            self._corpus.hits(rows_K[rows_K >= 0], scores_K[rows_K >= 0])
            for rows_K, scores_K in zip(rows_NK, scores_NK, strict=True)
        ]

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """float32 unit vectors, (len(queries), dimension), with the query instruction put before each."""
        return self._encoder.encode(queries, self._query_instruction, self._batch_size)

    def rank_rows(self, vectors: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (float32) and corpus rows (int64) of the best passages of each vector, best first.

        Both are (len(vectors), min(num, number of passages)). Row -1 says that the index has no more neighbours (an IVF
        index that probes few cells, for example).
        """
        num = min(num, self._index.ntotal)
        if not len(vectors):
            return np.empty((0, num), dtype=np.float32), np.empty((0, num), dtype=np.int64)
        with self._index_guard:
            scores, rows = self._index.search(vectors, num)
        # Squared distances of unit vectors are 2 - 2 * product.
        return (1 - scores / 2 if self._is_l2 else scores), rows
