"""Compare index types: `python scripts/bench/index_types.py --index_path …/minilm_Flat.index --questions …`

On the vectors of a Flat index and real questions: recall@5 against Flat, build time, size, queries per second. On
clustered synthetic vectors: how memory and speed grow, and an extrapolation to Wikipedia's 21 million passages. Indexes
are built as the index builder builds them. Prints Markdown tables, and one line of JSON last.
Does not cover: the encoder's time (retrieval.py), finding the right passages (retrieval_quality.py).
"""

import ctypes
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/bench
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import psutil
from scipy.optimize import nnls

from evaluation.report.tables import markdown_table
from flashrag.errors import UserError, exit_on_user_error
from flashrag.retriever import prepare_process, read_card, resolve_model_folder
from flashrag.retriever.build.embeddings import Embeddings
from flashrag.retriever.build.faiss_file import build_index
from flashrag.retriever.build.faiss_types import FaissType, plan_index
from flashrag.system.arguments import CommandParser
from scripts.bench.inputs import read_unique_questions
from scripts.bench.report import shown
from scripts.bench.servers import in_own_process

REAL_TYPES = {  # with the search parameters to try beside the builder's own
    "Flat": [{}],
    "SQ8": [{}],
    "HNSW": [{}, {"efSearch": 32}],
    "IVF-Flat": [{}, {"nprobe": 8}, {"nprobe": 112}],
    "IVF-PQ": [{}, {"nprobe": 8}, {"nprobe": 112}],
    "IVF783,PQ48np": [{}],
}
GROWTH_TYPES = (FaissType.FLAT, FaissType.SQ8, FaissType.IVF_PQ)
WIKIPEDIA_2018 = 21_015_324  # passages of a hundred words: DPR's corpus, which FlashRAG's wiki18 is
SEED = 20181220
MIN_MEASURED_S = 2.0
BATCH = 64
DIMENSION = 768
VECTORS_PER_CENTRE = 200
CENTRE_COSINE = 0.8
ROWS_PER_WRITE = 50_000

Row = dict[str, Any]  # of a table, and of the line of JSON


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="python scripts/bench/index_types.py",
        description="Compare the recall, build time, size and speed of index types.",
    )
    add = parser.add_argument_group("real vectors").add_argument
    add("--index_path", type=Path, help="Flat index with the card that its builder wrote (default: skip this part)")
    add(
        "--questions",
        type=Path,
        nargs="+",
        default=[],
        help="question files (jsonl), needed with --index_path (default: none)",
    )
    add = parser.add_argument_group("synthetic vectors").add_argument
    add(
        "--sizes",
        type=int,
        nargs="*",
        default=[10_000, 100_000, 1_000_000],
        help="numbers of vectors; give none to skip this part",
    )
    add = parser.add_argument_group("both parts").add_argument
    add("--num_queries", type=int, default=1000, help="number of questions, or of synthetic queries")
    add("--work_dir", type=Path, help="folder for the indexes, which are removed again (default: a temporary folder)")
    args = parser.parse_args(argv)
    prepare_process()
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        real = measure_real(args.index_path, args.questions, args.num_queries, Path(folder)) if args.index_path else []
        growth = measure_growth(args.sizes, args.num_queries, Path(folder))
    for rows in filter(None, (real, growth)):
        print(markdown_table(list(rows[0]), [[shown(value) for value in row.values()] for row in rows]), end="\n\n")
    print(json.dumps({"real": real, "growth": growth}))
    return 0


def measure_real(index_path: Path, question_paths: Sequence[Path], num_queries: int, folder: Path) -> list[Row]:
    import faiss

    from flashrag.retriever.encoder import Encoder

    card = read_card(index_path, "dense")
    if card is None or card.faiss_type != "Flat" or card.model is None or card.pooling is None:
        raise UserError(f"--index_path: {index_path} is no Flat index with a card; build it with --faiss_type Flat")
    questions = read_unique_questions(question_paths, SEED)[:num_queries]
    encoder = Encoder(resolve_model_folder(card.model, "--index_path"), card.pooling, 128, False, "--index_path")
    queries = encoder.encode(questions, card.query_instruction, 64)
    flat = faiss.read_index(str(index_path))
    np.save(folder / "vectors.npy", flat.reconstruct_n(0, flat.ntotal))
    _, exact = flat.search(queries, 5)
    measure = partial(build_and_measure, folder / "vectors.npy", queries, exact)
    return [row for faiss_type, settings in REAL_TYPES.items() for row in measure(faiss_type, settings)]


def measure_growth(sizes: Sequence[int], num_queries: int, folder: Path) -> list[Row]:
    rows = []
    for size in sizes:
        path = folder / "clustered.npy"
        queries = write_clustered(path, size, num_queries, DIMENSION, SEED)
        for faiss_type in GROWTH_TYPES:
            (row,) = build_and_measure(path, queries, None, faiss_type, [{}])
            speeds = {name: row[name] for name in ("build_s", "qps_1_thread", "qps_2_threads")}
            memory_gb = row["memory_mb"] / 1e3
            rows.append({"count": size, "faiss_type": faiss_type, "measured": True, "memory_gb": memory_gb, **speeds})
        path.unlink()
    return [*rows, *extrapolate(rows)]


def build_and_measure(
    vectors: Path, queries: np.ndarray, exact: np.ndarray | None, faiss_type: str, settings: Sequence[Mapping[str, int]]
) -> list[Row]:
    """One row for each of the search settings; an empty one is the builder's own. The index is removed again.

    Speeds are of faiss alone: query vectors in, rows out.
    """
    from faiss.contrib.evaluation import knn_intersection_measure

    embeddings, path = Embeddings([partial(np.load, vectors, mmap_mode="r")]), vectors.with_suffix(".index")
    started = time.perf_counter()
    build_index(path, plan_index(faiss_type, embeddings.dimension, embeddings.count), embeddings)
    build_s = time.perf_counter() - started  # training, adding and writing, without the encoder
    with in_own_process(LoadedIndex, str(path)) as index:
        rows = [
            {
                "faiss_type": faiss_type,
                "searched_with": index.set(setting),
                # Of the five that Flat finds; None where that was not asked for.
                "recall_at_5": None if exact is None else knn_intersection_measure(index.rows(queries), exact),
                "build_s": build_s,
                "index_mb": path.stat().st_size / 1e6,
                "memory_mb": index.memory_mb(),
                "qps_1_thread": index.queries_per_second(queries, 1, 1),
                "qps_2_threads": index.queries_per_second(queries, 2, 1),
                "qps_batches": index.queries_per_second(queries, 2, BATCH),
            }
            for setting in settings
        ]
    path.unlink()
    return rows


class LoadedIndex:
    """An index in a process that holds nothing else."""

    def __init__(self, path: str) -> None:
        import faiss

        process = psutil.Process()
        ctypes.CDLL(None).malloc_trim(0)  # else the index could reuse what imports freed, and look smaller
        before = process.memory_info().rss
        self._index = faiss.read_index(path)
        self._index.search(np.zeros((1, self._index.d), dtype=np.float32), 5)
        self._memory_mb = (process.memory_info().rss - before) / 1e6

    def memory_mb(self) -> float:
        """Of this process, added by loading the index and searching it once."""
        return self._memory_mb

    def set(self, settings: Mapping[str, int]) -> str:
        """Apply search parameters; returns those in force."""
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

        def caller(first: int) -> int:
            done, number = 0, first
            while not done or time.perf_counter() < started + MIN_MEASURED_S:
                part = parts[number % len(parts)]
                self._index.search(part, 5)
                done, number = done + len(part), number + threads
            return done

        # OpenMP's number of threads is set for each calling thread separately.
        with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
            done = sum(pool.map(caller, range(threads)))
        return done / (time.perf_counter() - started)


def write_clustered(path: Path, count: int, num_queries: int, dimension: int, seed: int) -> np.ndarray:
    """Write `count` clustered unit vectors to a .npy file, block by block; returns queries drawn in the same way.

    Vectors lie around centres, one for every 200 of them, and their product with their centre is about 0.8. Uniform
    vectors would have no neighbours, which makes an index with cells look worse than it is.
    """
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // VECTORS_PER_CENTRE), dimension), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)

    def draw(rows: int) -> np.ndarray:
        noise = random.standard_normal((rows, dimension), dtype=np.float32)
        noise *= math.sqrt((1 / CENTRE_COSINE**2 - 1) / dimension)
        vectors = centres[random.integers(len(centres), size=rows)] + noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (count, dimension))
    for start in range(0, count, ROWS_PER_WRITE):
        vectors[start : start + ROWS_PER_WRITE] = draw(min(ROWS_PER_WRITE, count - start))
    return draw(num_queries)


def extrapolate(rows: Sequence[Row], count: int = WIKIPEDIA_2018) -> list[Row]:
    """An estimate for `count` vectors from the rows of each type.

    Memory grows with the count. So does the time of Flat and SQ8; a query of IVF-PQ takes a * cells + b * vectors in
    the probed cells, with a and b fitted to the rows.
    """
    found = []
    for faiss_type in dict.fromkeys(row["faiss_type"] for row in rows):
        measured = [row for row in rows if row["faiss_type"] == faiss_type]
        largest = max(measured, key=lambda row: row["count"])
        growth = count / largest["count"]
        estimate = {**largest, "count": count, "measured": False, "memory_gb": largest["memory_gb"] * growth}
        for name in ("qps_1_thread", "qps_2_threads"):
            estimate[name] = largest[name] / growth
            if faiss_type == FaissType.IVF_PQ:
                work = np.array([_ivf_work(row["count"]) for row in measured])
                weights, _ = nnls(work, np.array([1 / row[name] for row in measured]))
                estimate[name] = float(1 / (weights @ _ivf_work(count)))
        found.append({**estimate, "build_s": None})
    return found


def _ivf_work(count: int) -> np.ndarray:
    """Cells compared with a query, and vectors in those that are probed: 4 * sqrt(count), of which 2 * sqrt(cells).

    >>> _ivf_work(1_000_000).round().tolist()
    [4000.0, 31623.0]
    """
    cells = 4 * math.sqrt(count)
    return np.array([cells, 2 * count / math.sqrt(cells)])


if __name__ == "__main__":
    sys.exit(main())
