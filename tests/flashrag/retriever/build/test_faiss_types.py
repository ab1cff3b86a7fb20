import faiss
import numpy as np
import pytest

from flashrag.errors import UserError
from flashrag.retriever.build.faiss_types import (
    IndexPlan,
    faiss_type_name,
    index_bytes,
    new_index,
    parameters,
    plan_index,
    training_size,
)


@pytest.mark.parametrize(
    ("faiss_type", "dimension", "count", "factory"),
    [
        ("Flat", 768, 21_000_000, "Flat"),
        ("SQ8", 768, 3, "SQ8"),
        ("HNSW", 384, 3, "HNSW32"),
        ("IVF-Flat", 768, 21_000_000, "IVF18330,Flat"),  # 4 * sqrt(21e6) = 18,330.3
        ("IVF-Flat", 768, 38_304, "IVF783,Flat"),  # 4 * sqrt(38304) = 782.9; 38304 / 39 = 982
        ("IVF-PQ", 768, 1_000_000, "IVF4000,PQ192np"),  # 768 / 4
        ("IVF-PQ", 1022, 9_984, "IVF256,PQ146np"),  # 4 * sqrt(9984) = 399.7, but 9984 / 39 = 256; 1022 = 2 * 7 * 73
        ("IVF-Flat", 8, 5, "IVF1,Flat"),
        ("IVF4096,PQ64", 768, 21_000_000, "IVF4096,PQ64"),
    ],
)
def test_sizes_follow_the_corpus(faiss_type, dimension, count, factory):
    assert plan_index(faiss_type, dimension, count).factory == factory


def test_names_are_taken_in_any_case_and_factory_texts_as_they_are():
    given = ["flat", "ivf-pq", "Hnsw", "sq8", "IVF64,Flat"]
    assert [faiss_type_name(name) for name in given] == ["Flat", "IVF-PQ", "HNSW", "SQ8", "IVF64,Flat"]


@pytest.mark.parametrize(
    ("faiss_type", "count", "message"),
    [
        ("IVF-PQ", 9_983, "IVF-PQ was given for 9983 passages; it needs at least 9984"),
        ("IVF64,Flat", 63, "'IVF64,Flat' cannot be trained on 63 passages: it has 64 cells; use Flat, or at most IVF1"),
        ("Round", 100, "'Round' is none of Flat, HNSW, .* and no faiss index_factory text .*could not parse"),
        ("PQ7", 100, "'PQ7' is none of .*multiple of the number of subquantizers"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_encoded(faiss_type, count, message):
    with pytest.raises(UserError, match=message):
        plan_index(faiss_type, 64, count)


def test_search_parameters_stay_with_the_index(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((400, 16), dtype=np.float32)
    expected = {
        # 4 * sqrt(400) = 80 cells, but 400 / 39 = 10; 2 * sqrt(10) = 6.3 are searched
        "IVF-Flat": {"factory": "IVF10,Flat", "nlist": 10, "nprobe": 6},
        "HNSW": {"factory": "HNSW32", "M": 32, "efConstruction": 100, "efSearch": 128},
        "SQ8": {"factory": "SQ8"},
        "IVF4,PQ4x4": {"factory": "IVF4,PQ4x4", "nlist": 4, "nprobe": 4, "pq_codes": 4, "pq_bits": 4},
    }
    for faiss_type, values in expected.items():
        plan = plan_index(faiss_type, 16, 400)
        index = new_index(plan)
        index.train(vectors)
        index.add(vectors)
        faiss.write_index(index, str(tmp_path / "index"))
        read = faiss.read_index(str(tmp_path / "index"))
        assert read.metric_type == faiss.METRIC_INNER_PRODUCT
        assert parameters(read, plan) == values


@pytest.mark.parametrize(
    ("factory", "size"),
    [("Flat", 0), ("SQ8", 65_536), ("IVF100,Flat", 65_536), ("IVF18330,Flat", 1_173_120)],  # 64 * 18330
)
def test_the_training_sample_grows_with_the_cells(factory, size):
    assert training_size(new_index(IndexPlan(factory, factory, 4))) == size


@pytest.mark.parametrize(
    "faiss_type", ["Flat", "SQ8", "HNSW", "IVF-Flat", "IVF16,PQ4np", "IVF16,SQ8", "PCA8,IVF16,Flat"]
)
def test_the_size_is_told_before_it_is_built(faiss_type):
    count, dimension = 10_000, 16
    vectors = np.random.default_rng(0).standard_normal((count, dimension)).astype(np.float32)
    plan = plan_index(faiss_type, dimension, count)
    index = new_index(plan)
    index.train(vectors)
    index.add(vectors)
    assert index_bytes(plan, count) == pytest.approx(len(faiss.serialize_index(index)), rel=0.03)
