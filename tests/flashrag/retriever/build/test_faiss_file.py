"""Index files from vectors on disk: real faiss, a file-size limit in place of a full disk."""

import resource

import faiss
import numpy as np
import pytest

from flashrag.errors import UserError
from flashrag.retriever.build.embeddings import Embeddings
from flashrag.retriever.build.faiss_file import build_index
from flashrag.retriever.build.faiss_types import plan_index

VECTORS = np.random.default_rng(0).standard_normal((12_000, 16), dtype=np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def embeddings():
    return Embeddings([lambda: VECTORS[:9_000], lambda: VECTORS[9_000:]])  # more than one block, an uneven rest


@pytest.fixture(scope="module")
def fewer():
    """Too few for IVF-PQ."""
    return Embeddings([lambda: VECTORS[:3_000], lambda: VECTORS[3_000:4_000]])


def test_flat_is_byte_for_byte_what_faiss_writes(tmp_path, embeddings):
    build_index(tmp_path / "ours", plan_index("Flat", 16, 12_000), embeddings)
    index = faiss.index_factory(16, "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize(
    ("faiss_type", "least_recall"), [("Flat", 1), ("SQ8", 0.9), ("HNSW", 0.95), ("IVF-Flat", 0.5), ("IVF-PQ", 0.4)]
)
def test_every_type_finds_the_neighbours_from_memory_and_from_a_memory_map(
    tmp_path, embeddings, faiss_type, least_recall
):
    queries = VECTORS[::100]
    exact = np.argsort(-(queries @ VECTORS.T), axis=1)[:, :5]
    parameters = build_index(tmp_path / "index", plan_index(faiss_type, 16, 12_000), embeddings)
    assert parameters.get("trained_on", 0) in (0, 12_000)
    for flags in (0, faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP_IFC):
        index = faiss.read_index(str(tmp_path / "index"), flags)
        assert index.ntotal == 12_000
        _, found = index.search(queries, 5)
        hits = [len(set(some) & set(true)) for some, true in zip(found.tolist(), exact.tolist(), strict=True)]
        assert sum(hits) / (5 * len(queries)) >= least_recall


def test_two_builds_give_the_same_bytes(tmp_path, fewer):
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        for faiss_type in ("SQ8", "IVF-Flat", "HNSW"):
            for name in ("one", "two"):
                build_index(tmp_path / name, plan_index(faiss_type, 16, 4_000), fewer)
            assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    finally:
        faiss.omp_set_num_threads(threads)


@pytest.mark.parametrize("faiss_type", ["Flat", "SQ8", "HNSW", "IVF-Flat"])
def test_a_disk_that_takes_no_more_is_an_oserror(tmp_path, fewer, faiss_type):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            build_index(tmp_path / "index", plan_index(faiss_type, 16, 4_000), fewer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_faiss_cannot_train_is_a_readable_error(tmp_path):
    few = Embeddings([lambda: VECTORS[:100]])
    with pytest.raises(UserError, match=r"'PQ4' cannot be trained on 100 passages \(Number of training points \(100\)"):
        build_index(tmp_path / "index", plan_index("PQ4", 16, 100), few)


def test_training_on_gpus_without_one_is_refused(tmp_path, embeddings):
    if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
        pytest.skip("faiss sees a GPU here")
    with pytest.raises(UserError, match="--faiss_gpu was given, but this faiss sees no GPU"):
        build_index(tmp_path / "index", plan_index("IVF-Flat", 16, 12_000), embeddings, train_on_gpu=True)


@pytest.mark.parametrize("faiss_type", ["IVF-Flat", "IVF-PQ", "PCA8,IVF16,PQ8np", "IVF16_HNSW8,Flat", "SQ8"])
def test_the_cells_are_found_on_one_gpu_and_are_those_that_a_cpu_finds(tmp_path, embeddings, monkeypatch, faiss_type):
    """A CPU index stands for the GPU's here. faiss finds cells by an index of their own, whatever the type is."""
    asked = []

    def to_gpus(index, gpus):
        asked.append((type(index).__name__, gpus))
        return index

    monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", to_gpus, raising=False)
    monkeypatch.setattr("flashrag.retriever.build.faiss_file.check_gpus", lambda _: None)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        plan = plan_index(faiss_type, 16, 12_000)
        for name, on_gpu in (("cpu", False), ("gpu", True)):
            build_index(tmp_path / name, plan, embeddings, on_gpu)
    finally:
        faiss.omp_set_num_threads(threads)
    assert asked == ([] if faiss_type == "SQ8" else [("IndexFlat", [0])])
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "gpu").read_bytes()


def test_a_gpu_that_fails_in_training_is_told(tmp_path, embeddings, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("Error in allocate: 'err' failed: Failed to cudaMalloc 60000 bytes")

    monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", full, raising=False)
    monkeypatch.setattr("flashrag.retriever.build.faiss_file.check_gpus", lambda _: None)
    with pytest.raises(UserError, match=r"cannot be trained on 12000 passages \(Failed to cudaMalloc 60000 bytes\)"):
        build_index(tmp_path / "index", plan_index("IVF-Flat", 16, 12_000), embeddings, train_on_gpu=True)
