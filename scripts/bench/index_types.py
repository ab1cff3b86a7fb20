"""Compare index types: `python scripts/bench/index_types.py --index_path …/minilm_Flat.index --questions …`

On the vectors of a Flat index and real questions: recall@5 against Flat, build time, size, queries a second. On
clustered synthetic vectors of 768 dimensions: how memory and speed grow, and, on paper, what that makes of Wikipedia's
21 million passages. Indexes are built as the index builder builds them. Prints Markdown tables, and one line of JSON
last. Does not cover: the encoder's time (retrieval.py), finding the right passages (retrieval_quality.py).
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/bench
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from flashrag.errors import UserError, exit_on_user_error
from flashrag.retriever.build.embeddings import Embeddings
from flashrag.retriever.encoder_folder import resolve_model_folder
from flashrag.retriever.index_card import read_card
from flashrag.system.arguments import CommandParser
from scripts.bench.index_growth import GROWTH_TYPES, Growth, extrapolate, write_clustered
from scripts.bench.index_measurement import Measured, build_and_measure
from scripts.bench.markdown import markdown_table
from scripts.bench.questions import read_unique_questions

REAL_TYPES = {  # with the search parameters to try beside the builder's own
    "Flat": [{}],
    "SQ8": [{}],
    "HNSW": [{}, {"efSearch": 32}],
    "IVF-Flat": [{}, {"nprobe": 8}, {"nprobe": 112}],
    "IVF-PQ": [{}, {"nprobe": 8}, {"nprobe": 112}],
    "IVF783,PQ48np": [{}],
}
DIMENSION = 768
SEED = 20181220


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(description="Recall, build time, size and speed of index types.")
    add = parser.add_argument
    add("--index_path", type=Path, help="a Flat index with its card, as the index builder wrote them; none: skipped")
    add("--questions", type=Path, nargs="+", default=[], help="FlashRAG question files (jsonl), for --index_path")
    add("--num_queries", type=int, default=1000, help="questions, or synthetic queries; default 1000")
    add("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="synthetic vectors; none: skipped")
    add("--work_dir", type=Path, help="where indexes are built and removed again; default: a temporary folder")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        real = []
        if args.index_path is not None:
            real = measure_real(args.index_path, args.questions, args.num_queries, Path(folder))
        growth = measure_growth(args.sizes, args.num_queries, Path(folder))
    print(real_table(real), growth_table(growth), sep="\n\n")
    print(json.dumps({"real": [asdict(row) for row in real], "growth": [asdict(row) for row in growth]}))
    return 0


def measure_real(index_path: Path, question_paths: Sequence[Path], num_queries: int, folder: Path) -> list[Measured]:
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
    embeddings = Embeddings([partial(np.load, folder / "vectors.npy", mmap_mode="r")])
    return [
        row
        for faiss_type, settings in REAL_TYPES.items()
        for row in build_and_measure(faiss_type, embeddings, queries, exact, settings, folder)
    ]


def measure_growth(sizes: Sequence[int], num_queries: int, folder: Path) -> list[Growth]:
    rows = []
    for size in sizes:
        path = folder / "clustered.npy"
        queries = write_clustered(path, size, num_queries, DIMENSION, SEED)
        embeddings = Embeddings([partial(np.load, path, mmap_mode="r")])
        for faiss_type in GROWTH_TYPES:
            (row,) = build_and_measure(faiss_type, embeddings, queries, None, [{}], folder)
            rows.append(Growth.from_measured(row, size))
        path.unlink()
    return [*rows, *extrapolate(rows)]


def real_table(rows: Sequence[Measured]) -> str:
    header = [
        "type",
        "searched with",
        "recall@5",
        "build s",
        "MB",
        "QPS 1 thread",
        "QPS 2 threads",
        "QPS batches of 64",
    ]
    return markdown_table(header, [
        [
            row.faiss_type, row.searched_with, f"{row.recall_at_5:.3f}", f"{row.build_s:.1f}", f"{row.index_mb:.1f}",
            *map(_speed, (row.qps_1_thread, row.qps_2_threads, row.qps_batches)),
        ]
        for row in rows
    ])  # fmt: skip


def growth_table(rows: Sequence[Growth]) -> str:
    header = ["vectors", "type", "memory GB", "build s", "QPS 1 thread", "QPS 2 threads"]
    return markdown_table(header, [
        [
            f"{row.count:,}" + ("" if row.measured else " (extrapolated)"), row.faiss_type, f"{row.memory_gb:.3f}",
            "–" if row.build_s is None else f"{row.build_s:.1f}", _speed(row.qps_1_thread), _speed(row.qps_2_threads),
        ]
        for row in rows
    ])  # fmt: skip


def _speed(queries_per_second: float) -> str:
    """Three digits that mean something, or whole queries.

    >>> _speed(0.20941), _speed(43.165), _speed(1717.2)
    ('0.209', '43.2', '1,717')
    """
    return f"{queries_per_second:.3g}" if queries_per_second < 100 else f"{queries_per_second:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
