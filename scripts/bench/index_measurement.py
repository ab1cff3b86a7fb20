"""Build one index as the builder does, and measure it in a process that holds nothing else."""

import ctypes
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from flashrag.retriever.build.embeddings import Embeddings
from flashrag.retriever.build.faiss_file import build_index
from flashrag.retriever.build.faiss_types import plan_index
from scripts.bench.own_process import in_own_process

MIN_MEASURED_S = 2.0
BATCH = 64


@dataclass(frozen=True)
class Measured:
    """One index with one setting of its search. Speeds are of faiss alone: query vectors in, rows out."""

    faiss_type: str
    searched_with: str
    recall_at_5: float | None  # of the five that Flat finds; None where that was not asked for
    build_s: float  # training, adding and writing; the vectors were there
    index_mb: float
    memory_mb: float  # that loading it and searching it once adds to a process
    qps_1_thread: float  # one query at a time
    qps_2_threads: float
    qps_batches: float  # on two threads, BATCH queries at a time


class LoadedIndex:
    """An index in a process of its own, searched on as many threads as a call says."""

    def __init__(self, path: str) -> None:
        import faiss

        process = psutil.Process()
        ctypes.CDLL(None).malloc_trim(0)  # what imports freed would take up part of the index unseen
        before = process.memory_info().rss
        self._index = faiss.read_index(path)
        self._index.search(np.zeros((1, self._index.d), dtype=np.float32), 5)
        self._memory_mb = (process.memory_info().rss - before) / 1e6

    def memory_mb(self) -> float:
        return self._memory_mb

    def set(self, settings: Mapping[str, int]) -> str:
        """Apply search parameters; gives those in force."""
        import faiss

        if (ivf := faiss.try_extract_index_ivf(self._index)) is not None:
            ivf.nprobe = settings.get("nprobe", ivf.nprobe)
            return f"nprobe {ivf.nprobe} of {ivf.nlist}"
        if (hnsw := getattr(self._index, "hnsw", None)) is not None:
            hnsw.efSearch = settings.get("efSearch", hnsw.efSearch)
            return f"efSearch {hnsw.efSearch}"
        return "all"

    def rows(self, queries: np.ndarray) -> np.ndarray:
        return self._index.search(queries, 5)[1]

    def queries_per_second(self, queries: np.ndarray, threads: int, batch: int) -> float:
        """Over at least MIN_MEASURED_S; each thread is one caller, as in the server."""
        import faiss

        parts = [queries[start : start + batch] for start in range(0, len(queries), batch)]
        for part in parts[:2]:
            self._index.search(part, 5)
        started = time.perf_counter()
        deadline = started + MIN_MEASURED_S

        def caller(first: int) -> int:
            done, number = 0, first
            while time.perf_counter() < deadline:
                part = parts[number % len(parts)]
                self._index.search(part, 5)
                done, number = done + len(part), number + threads
            return done

        # OpenMP counts its threads for each calling thread by itself.
        with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
            done = sum(pool.map(caller, range(threads)))
        return done / (time.perf_counter() - started)


def build_and_measure(
    faiss_type: str,
    embeddings: Embeddings,
    queries: np.ndarray,
    exact: np.ndarray | None,
    settings: Sequence[Mapping[str, int]],
    folder: Path,
) -> list[Measured]:
    """One row for each of the search settings; an empty one is the builder's own. The index is removed again."""
    path = folder / "measured.index"
    started = time.perf_counter()
    build_index(path, plan_index(faiss_type, embeddings.dimension, embeddings.count), embeddings)
    build_s = time.perf_counter() - started
    index_mb = path.stat().st_size / 1e6
    with in_own_process(LoadedIndex, str(path)) as index:
        rows = [
            Measured(
                faiss_type=faiss_type,
                searched_with=index.set(setting),
                recall_at_5=None if exact is None else recall(index.rows(queries), exact),
                build_s=build_s,
                index_mb=index_mb,
                memory_mb=index.memory_mb(),
                qps_1_thread=index.queries_per_second(queries, 1, 1),
                qps_2_threads=index.queries_per_second(queries, 2, 1),
                qps_batches=index.queries_per_second(queries, 2, BATCH),
            )
            for setting in settings
        ]
    path.unlink()
    return rows


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of the exact rows that were found.

    >>> recall(np.array([[1, 2], [5, -1]]), np.array([[2, 3], [5, 6]]))
    0.5
    """
    shared = [len(set(some) & set(true)) for some, true in zip(found.tolist(), exact.tolist(), strict=True)]
    return sum(shared) / exact.size
