import numpy as np
import pytest

from flashrag.retriever.build.embeddings import Embeddings
from scripts.bench import index_measurement
from scripts.bench.index_measurement import LoadedIndex, build_and_measure

VECTORS = np.random.default_rng(0).standard_normal((2_000, 16), dtype=np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture
def exact():
    return np.argsort(-(VECTORS[:20] @ VECTORS.T), axis=1)[:, :5]


@pytest.fixture
def here(monkeypatch):
    """Measure in this process, and briefly."""
    import contextlib

    monkeypatch.setattr(index_measurement, "MIN_MEASURED_S", 0.05)
    monkeypatch.setattr(index_measurement, "in_own_process", lambda make, *given: contextlib.nullcontext(make(*given)))


@pytest.mark.usefixtures("here")
def test_a_row_for_each_setting_and_nothing_left_behind(tmp_path, exact):
    embeddings = Embeddings([lambda: VECTORS])
    rows = build_and_measure("IVF-Flat", embeddings, VECTORS[:20], exact, [{}, {"nprobe": 51}], tmp_path)
    # 2000 / 39 = 51 cells; 2 * sqrt(51) = 14 are searched unless told otherwise
    assert [row.searched_with for row in rows] == ["nprobe 14 of 51", "nprobe 51 of 51"]
    assert rows[0].recall_at_5 < rows[1].recall_at_5 == 1
    assert all(min(row.qps_1_thread, row.qps_2_threads, row.qps_batches) > 0 for row in rows)
    assert rows[0].index_mb == pytest.approx(2_000 * (16 * 4 + 8) / 1e6, rel=0.1)
    assert list(tmp_path.iterdir()) == []


def test_what_is_searched_is_counted(tmp_path, monkeypatch):
    import faiss

    monkeypatch.setattr(index_measurement, "MIN_MEASURED_S", 0.2)
    index = faiss.IndexFlatIP(16)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "index"))
    loaded = LoadedIndex(str(tmp_path / "index"))
    searched: list[int] = []
    real = loaded._index

    class Counting:
        def search(self, queries, num):
            searched.append(len(queries))
            return real.search(queries, num)

    loaded._index = Counting()
    qps = loaded.queries_per_second(VECTORS[:10], threads=2, batch=4)  # parts of 4, 4 and 2
    warm_up = 8
    assert qps * 0.2 == pytest.approx(sum(searched) - warm_up, rel=0.2)
    assert set(searched) == {2, 4}
