"""How indexes grow: clustered synthetic vectors, and what the measured sizes say about one that was not measured.

Vectors stand around centres, one for every 200 of them, as unit vectors whose product with their centre is about 0.8:
uniform ones have no neighbours, and flatter no index with cells less than they hurt it. Queries are drawn like vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from scipy.optimize import nnls

from flashrag.retriever.build.faiss_types import FaissType
from scripts.bench.index_measurement import Measured

GROWTH_TYPES = (FaissType.FLAT, FaissType.SQ8, FaissType.IVF_PQ)
WIKIPEDIA_2018 = 21_015_324  # passages of a hundred words: DPR's corpus, which FlashRAG's wiki18 is
VECTORS_PER_CENTRE = 200
CENTRE_COSINE = 0.8
ROWS_PER_WRITE = 50_000


@dataclass(frozen=True)
class Growth:
    count: int
    faiss_type: str
    measured: bool
    memory_gb: float
    build_s: float | None
    qps_1_thread: float
    qps_2_threads: float

    @classmethod
    def from_measured(cls, row: Measured, count: int) -> Self:
        speeds = (row.qps_1_thread, row.qps_2_threads)
        return cls(count, row.faiss_type, True, row.memory_mb / 1e3, row.build_s, *speeds)


def write_clustered(path: Path, count: int, num_queries: int, dimension: int, seed: int) -> np.ndarray:
    """Write `count` clustered unit vectors to a .npy file, block by block; gives the queries."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // VECTORS_PER_CENTRE), dimension), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)

    def draw(rows: int) -> np.ndarray:
        noise = random.standard_normal((rows, dimension), dtype=np.float32)
        noise *= math.sqrt((1 / CENTRE_COSINE**2 - 1) / dimension)
        vectors = centres[random.integers(len(centres), size=rows)] + noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, ROWS_PER_WRITE):
            file.write(draw(min(ROWS_PER_WRITE, count - start)).data)
    return draw(num_queries)


def extrapolate(rows: Sequence[Growth], count: int = WIKIPEDIA_2018) -> list[Growth]:
    """What the rows of each type say about `count` vectors.

    Memory grows with the count. So does the time of Flat and SQ8; a query of IVF-PQ takes a * cells + b * vectors in
    the probed cells, with a and b fitted to the rows.
    """
    found = []
    for faiss_type in dict.fromkeys(row.faiss_type for row in rows):
        measured = [row for row in rows if row.faiss_type == faiss_type]
        largest = max(measured, key=lambda row: row.count)
        speeds = [
            1 / _seconds(faiss_type, [(row.count, 1 / getattr(row, name)) for row in measured], count)
            for name in ("qps_1_thread", "qps_2_threads")
        ]
        found.append(Growth(count, faiss_type, False, largest.memory_gb * count / largest.count, None, *speeds))
    return found


def _seconds(faiss_type: str, points: Sequence[tuple[int, float]], count: int) -> float:
    """The time of a query at `count`, from (count, seconds) pairs."""
    if faiss_type != FaissType.IVF_PQ:
        largest, seconds = max(points)
        return seconds * count / largest
    weights, _ = nnls(np.array([_ivf_work(size) for size, _ in points]), np.array([seconds for _, seconds in points]))
    return float(weights @ _ivf_work(count))


def _ivf_work(count: int) -> np.ndarray:
    """Cells compared with a query, and vectors in those that are probed: 4 * sqrt(count), of which 2 * sqrt(cells).

    >>> _ivf_work(1_000_000).round().tolist()
    [4000.0, 31623.0]
    """
    cells = 4 * math.sqrt(count)
    return np.array([cells, 2 * count / math.sqrt(cells)])
