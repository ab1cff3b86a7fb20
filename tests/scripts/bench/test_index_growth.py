import numpy as np
import pytest

from scripts.bench.index_growth import Growth, extrapolate, write_clustered


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


def test_memory_and_the_time_of_flat_grow_with_the_count():
    rows = [Growth(count, "Flat", True, 3e-6 * count, 1.0, 1e6 / count, 2e6 / count) for count in (10_000, 1_000_000)]
    (row,) = extrapolate(rows, 20_000_000)
    assert row == Growth(20_000_000, "Flat", False, pytest.approx(60), None, pytest.approx(0.05), pytest.approx(0.1))


def test_the_time_of_ivf_pq_is_fitted_to_its_cells_and_its_vectors():
    def qps(count: int) -> float:  # 1 ns a cell, 2 ns a vector in the probed ones
        cells = 4 * count**0.5
        return 1e9 / (cells + 4 * count / cells**0.5)

    rows = [Growth(n, "IVF-PQ", True, n / 1e7, 1.0, qps(n), qps(n)) for n in (10_000, 100_000, 1_000_000)]
    (row,) = extrapolate(rows, 20_000_000)
    assert row.qps_1_thread == pytest.approx(qps(20_000_000))
    assert row.memory_gb == pytest.approx(2)
