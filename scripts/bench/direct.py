"""The limit: encoder and index in one process, no server. Thread settings are what this process finds, as the server's.

Importing this module is cheap; the retriever is loaded where a `Direct` is made.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flashrag.retriever import Retriever, check_assets, load_retriever_from
from rag_serving.settings import read_settings


class Direct:
    """Times the retriever's own calls; one lives in a process of its own."""

    def __init__(self, config: Path, *, our_encoder: bool) -> None:
        self._retriever = measured_retriever(config, our_encoder=our_encoder)

    def call_ms(self, questions: Sequence[str], batch_size: int, top_n: int) -> np.ndarray:
        """The time of each call when `questions` are ranked `batch_size` at a time."""
        times = []
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            started = time.perf_counter()
            self._retriever.rank(batch, top_n)
            times.append(1000 * (time.perf_counter() - started))
        return np.array(times)

    def cpu_s(self) -> float:
        """Processor time of this process so far."""
        return time.process_time()


def measured_retriever(config: Path, *, our_encoder: bool) -> Retriever:
    """The retriever of a server's config, with our encoder or with sentence-transformers' own `encode`."""
    assets = check_assets(read_settings(config))
    retriever = load_retriever_from(assets)
    if not our_encoder:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(assets.model_folder))
        retriever.encode_queries = lambda queries: model.encode(queries, normalize_embeddings=True)  # pyrefly: ignore
    return retriever
