"""Compare index types: `python scripts/bench/index_types.py --index_path …/minilm_Flat.index --questions …`

On the vectors of a Flat index and real questions: recall@5 against Flat, build time, size, queries per second. On
clustered synthetic vectors: how memory and speed grow, and an extrapolation to Wikipedia's 21 million passages. Indexes
are built as the index builder builds them. Prints Markdown tables, and one line of JSON last.
Does not cover: the encoder's time (retrieval.py), finding the right passages (retrieval_quality.py).
"""

import ctypes
import itertools
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
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
from flashrag.retriever import prepare_process, read_card, read_index, resolve_model_folder, set_search_depth
from flashrag.retriever.build.embeddings import Embeddings
from flashrag.retriever.build.faiss_types import FaissType, plan_index
from flashrag.system.arguments import flag, parse_options
from scripts.bench.inputs import read_unique_questions
from scripts.bench.report import shown

REAL_TYPES = {  # with the search parameters to try beside the builder's own
    "Flat": [{}],
    "SQ8": [{}],
    "HNSW": [{}, {"efSearch": 32}],
    "IVF-Flat": [{}, {"nprobe": 8}, {"nprobe": 112}],
    "IVF-PQ": [{}, {"nprobe": 8}, {"nprobe": 112}],
    "IVF783,PQ48np": [{}],
}
GROWTH_TYPES = (FaissType.FLAT, FaissType.SQ8, FaissType.IVF_PQ)
GROWTH_COLUMNS = ("count", "faiss_type", "measured", "memory_gb", "build_s", "qps_1_thread", "qps_2_threads")
WIKIPEDIA_2018 = 21_015_324  # passages of a hundred words: DPR's corpus, which FlashRAG's wiki18 is
SIZES = (10_000, 100_000, 1_000_000)
SEED = 20181220
MIN_MEASURED_S = 2.0
SPEEDS = {"qps_1_thread": (1, 1), "qps_2_threads": (2, 1), "qps_batches": (2, 64)}  # threads, queries at a time
DIMENSION = 768
VECTORS_PER_CENTRE = 200
CENTRE_COSINE = 0.8
ROWS_PER_WRITE = 50_000

Row = dict[str, Any]  # of a table, and of the line of JSON


@dataclass(frozen=True)
class IndexTypesOptions:
    """Compare the recall, build time, size and speed of index types."""

    index_path: Path | None = flag("Flat index with its builder's card (default: skip the real vectors)", None)
    questions: Sequence[Path] = flag("jsonl files, needed with --index_path (default: none)", ())
    sizes: Sequence[int] = flag("numbers of synthetic vectors; give none to skip them", SIZES, nargs="*")
    num_queries: int = flag("number of questions, or of synthetic queries", 1000)
    work_dir: Path | None = flag("folder for the indexes, which are removed again (default: a temporary one)", None)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(IndexTypesOptions, "python scripts/bench/index_types.py", argv)
    prepare_process()
    with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
        real = measure_real(options, options.index_path, Path(folder)) if options.index_path else []
        growth = measure_growth(options.sizes, options.num_queries, Path(folder))
    for rows in filter(None, (real, growth)):
        print(markdown_table(list(rows[0]), [[shown(value) for value in row.values()] for row in rows]), end="\n\n")
    print(json.dumps({"real": real, "growth": growth}))
    return 0


def measure_real(options: IndexTypesOptions, index_path: Path, folder: Path) -> list[Row]:
    from flashrag.retriever.encoder import Encoder

    card = read_card(index_path, "dense")
    if card is None or card.faiss_type != "Flat" or card.model is None or card.pooling is None:
        raise UserError(f"--index_path: {index_path} is no Flat index with a card; build it with --faiss_type Flat")
    questions = read_unique_questions(options.questions, SEED)[: options.num_queries]
    encoder = Encoder(resolve_model_folder(card.model, "--index_path"), card.pooling, 128, False, "--index_path")
    queries = encoder.encode(questions, card.query_instruction, 64)
    flat, vectors = read_index(index_path), folder / "vectors.npy"
    np.save(vectors, flat.reconstruct_n(0, flat.ntotal))
    _, exact = flat.search(queries, 5)
    return [row for given in REAL_TYPES.items() for row in build_and_measure(vectors, queries, exact, *given)]


def measure_growth(sizes: Sequence[int], num_queries: int, folder: Path) -> list[Row]:
    rows = []
    for size in sizes:
        path = folder / "clustered.npy"
        queries = write_clustered(path, size, num_queries, DIMENSION, SEED)
        for faiss_type in GROWTH_TYPES:
            (row,) = build_and_measure(path, queries, None, faiss_type, [{}])
            row |= {"count": size, "measured": True, "memory_gb": row["memory_mb"] / 1e3}
            rows.append({name: row[name] for name in GROWTH_COLUMNS})
    return [*rows, *extrapolate(rows)]


def build_and_measure(
    vectors: Path, queries: np.ndarray, exact: np.ndarray | None, faiss_type: str, settings: Sequence[Mapping[str, int]]
) -> list[Row]:
    """One row for each of the search settings; an empty one is the builder's own. The index is removed again.

    Recall is of the five `exact` rows, None without them. Speeds are of faiss alone: query vectors in, rows out.
    """
    from flashrag.retriever.build.faiss_file import build_index

    embeddings, path = Embeddings([partial(np.load, vectors, mmap_mode="r")]), vectors.with_suffix(".index")
    started = time.perf_counter()
    build_index(path, plan_index(faiss_type, embeddings.dimension, embeddings.count), embeddings)
    build_s = time.perf_counter() - started  # training, adding and writing, without the encoder
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        measured = fresh.submit(search_and_measure, path, queries, exact, settings).result()
    path.unlink()
    return [{"faiss_type": faiss_type, "build_s": build_s, **row} for row in measured]


def search_and_measure(
    path: Path, queries: np.ndarray, exact: np.ndarray | None, settings: Sequence[Mapping[str, int]]
) -> list[Row]:
    """What a row says of an index once it is built, in a process that holds nothing else.

    Memory is what loading the index and searching it once adds to this process.
    """
    import faiss
    from faiss.contrib.evaluation import knn_intersection_measure

    process = psutil.Process()
    ctypes.CDLL(None).malloc_trim(0)  # else the index could reuse what imports freed, and look smaller
    before = process.memory_info().rss
    index = read_index(path)
    index.search(queries[:1], 5)
    size = {"index_mb": path.stat().st_size / 1e6, "memory_mb": (process.memory_info().rss - before) / 1e6}
    rows = []
    ivf, hnsw = faiss.try_extract_index_ivf(index), getattr(index, "hnsw", None)
    for setting in settings:
        set_search_depth(index, setting.get("nprobe"), setting.get("efSearch"))
        cells = f"nprobe {ivf.nprobe} of {ivf.nlist}" if ivf else "all"
        recall = None if exact is None else knn_intersection_measure(index.search(queries, 5)[1], exact)
        found = {"searched_with": f"efSearch {hnsw.efSearch}" if hnsw else cells, "recall_at_5": recall}
        speed = {name: queries_per_second(index, queries, *callers) for name, callers in SPEEDS.items()}
        rows.append({**found, **size, **speed})
    return rows


def queries_per_second(index: Any, queries: np.ndarray, threads: int, batch: int) -> float:
    """Over at least MIN_MEASURED_S; each thread is one caller, as in the server."""
    import faiss

    parts = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    for part in parts[:2]:
        index.search(part, 5)
    endless, started = itertools.cycle(parts), time.perf_counter()

    def caller(_: int) -> int:
        done = 0
        while not done or time.perf_counter() < started + MIN_MEASURED_S:
            part = next(endless)
            index.search(part, 5)
            done += len(part)
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
    """An estimate for `count` vectors from the rows of each type: memory grows with the count, time with the work."""
    found = []
    for faiss_type in dict.fromkeys(row["faiss_type"] for row in rows):
        measured = [row for row in rows if row["faiss_type"] == faiss_type]
        largest = max(measured, key=lambda row: row["count"])
        estimate = {**largest, "count": count, "measured": False, "build_s": None}
        estimate["memory_gb"] *= count / largest["count"]
        for name in ("qps_1_thread", "qps_2_threads"):
            work = np.array([query_work(faiss_type, row["count"]) for row in measured])
            weights, _ = nnls(work, np.array([1 / row[name] for row in measured]))
            estimate[name] = float(1 / (weights @ query_work(faiss_type, count)))
        found.append(estimate)
    return found


def query_work(faiss_type: str, count: int) -> list[float]:
    """What a query is compared with: of IVF-PQ the cells, and the vectors in those that are probed; else all vectors.

    >>> query_work("IVF-PQ", 1_000_000)  # 4 * sqrt(count) cells, of which 2 * sqrt(cells) are probed
    [4000.0, 31622.776601683796]
    """
    cells = 4 * math.sqrt(count)
    return [cells, 2 * count / math.sqrt(cells)] if faiss_type == FaissType.IVF_PQ else [count]


if __name__ == "__main__":
    sys.exit(main())
