"""Dense retrieval: a sentence encoder and a faiss index of inner products. Importing this module loads faiss and torch.

The encoder is serialised by its own lock; a faiss index on the CPU is searched by several threads at once, one on GPUs
by one at a time (GPU faiss is not thread-safe).
"""

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

import faiss

from flashrag.corpus import Corpus
from flashrag.document import Hit
from flashrag.errors import UserError
from flashrag.retriever.base import Retriever
from flashrag.retriever.encoder import Encoder


class DenseRetriever(Retriever):
    def __init__(
        self,
        method: str,
        index: faiss.Index,
        corpus: Corpus,
        encoder: Encoder,
        query_instruction: str,
        topk: int,
        batch_size: int,
        faiss_gpu: bool = False,
    ) -> None:
        _check_index(index, corpus, encoder)
        self.method = method
        self.corpus = corpus
        self.topk = topk
        self._index = _on_gpus(index) if faiss_gpu else index
        self._index_guard = threading.Lock() if faiss_gpu else contextlib.nullcontext()
        self._encoder = encoder
        self._query_instruction = query_instruction
        self._batch_size = batch_size

    def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        if not queries:
            return []
        vectors = self._encoder.encode(queries, self._query_instruction, self._batch_size)
        with self._index_guard:
            scores, rows = self._index.search(vectors, min(num, self._index.ntotal))
        # faiss fills up with row -1 where it has no more neighbours (IVF with few probes, for example).
        return [
            [Hit(self.corpus[int(row)], float(score)) for row, score in zip(rows_K, scores_K, strict=True) if row >= 0]
            for rows_K, scores_K in zip(rows, scores, strict=True)
        ]


def read_index(path: Path) -> faiss.Index:
    """The faiss index at `path`; raises UserError where it is none."""
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2]
        raise UserError(f"index_path: {path} is no faiss index ({reason}); build the index again") from error


def _check_index(index: faiss.Index, corpus: Corpus, encoder: Encoder) -> None:
    if index.ntotal != len(corpus):
        raise UserError(
            f"index_path: the index holds {index.ntotal} vectors, but corpus_path has {len(corpus)} passages "
            f"({corpus.path}); give the corpus that it was built from, or build the index again"
        )
    if index.d != encoder.dimension:
        raise UserError(
            f"retrieval_model_path: the encoder makes {encoder.dimension} dimensions, but the index has {index.d}; "
            "give the encoder that it was built with, or build the index again"
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise UserError(
            f"index_path: the index measures metric {index.metric_type}, expected inner product "
            f"({faiss.METRIC_INNER_PRODUCT}); build the index again"
        )


def _on_gpus(index: faiss.Index) -> faiss.Index:
    if not hasattr(faiss, "index_cpu_to_all_gpus") or faiss.get_num_gpus() == 0:
        raise UserError(
            "faiss_gpu: true was given, but this faiss sees no GPU; install faiss-gpu, or set faiss_gpu to false"
        )
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, co=options)
