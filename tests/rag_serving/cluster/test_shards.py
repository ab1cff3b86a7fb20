import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flashrag.errors import UserError
from flashrag.retriever.index_shards import main as split
from flashrag.retriever.index_shards import read_shards
from rag_serving.cluster.shards import NO_ROW, RankedRows, Shard, best_first, merge, search

# Few values, so that ties abound; exactly representable, so that scores are exact whatever the order of the sum.
VECTORS = st.integers(1, 60).flatmap(
    lambda rows: arrays(np.float32, (rows, 2), elements=st.integers(-2, 2).map(float), fill=st.nothing())
)
QUERIES = arrays(np.float32, (3, 2), elements=st.integers(-2, 2).map(float), fill=st.nothing())


def by_hand(vectors: np.ndarray, queries: np.ndarray, num: int) -> tuple[list[list[int]], list[list[float]]]:
    """Every score, sorted: highest first, equal ones by row."""
    scores = queries @ vectors.T
    rows = [sorted(range(len(vectors)), key=lambda row: (-scores_[row], row))[:num] for scores_ in scores]
    return rows, [[float(scores_[row]) for row in rows_] for scores_, rows_ in zip(scores, rows, strict=True)]


def flat(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def test_equal_scores_are_ordered_by_row_and_padding_is_last():
    ranked = RankedRows(
        np.array([[0.5, 0.9, 0.9, 0.5, 0.0]], dtype=np.float32),
        np.array([[7, 12, 3, 2, NO_ROW]]),
    )
    best = best_first(ranked, 4)
    assert best.rows.tolist() == [[3, 12, 2, 7]]
    assert best.scores.tolist() == [[np.float32(0.9), np.float32(0.9), 0.5, 0.5]]
    assert best_first(ranked, 5).rows.tolist() == [[3, 12, 2, 7, NO_ROW]]


def test_padding_is_last_even_where_every_score_is_below_its_own():
    ranked = RankedRows(np.array([[0.0, -3.0]], dtype=np.float32), np.array([[NO_ROW, 4]]))
    assert best_first(ranked, 2).rows.tolist() == [[4, NO_ROW]]


@given(vectors=VECTORS, queries=QUERIES, num=st.integers(1, 70))
def test_a_search_takes_the_lowest_rows_of_a_tie(vectors, queries, num):
    ranked = search(flat(vectors), queries, num)
    rows, scores = by_hand(vectors, queries, num)
    assert ranked.rows.tolist() == rows
    assert ranked.scores.tolist() == scores


@given(vectors=VECTORS, queries=QUERIES, num=st.integers(1, 70), data=st.data())
def test_shards_merge_to_the_result_over_all_rows(vectors, queries, num, data):
    edges = data.draw(st.lists(st.integers(0, len(vectors)), max_size=5).map(sorted))
    bounds = [bound for bound in zip([0, *edges], [*edges, len(vectors)], strict=True) if bound[0] < bound[1]]
    parts = []
    for start, stop in bounds:
        ranked = search(flat(vectors[start:stop]), queries, num)
        parts.append(RankedRows(ranked.scores, ranked.rows + start))
    merged = merge(data.draw(st.permutations(parts)), num)
    rows, scores = by_hand(vectors, queries, num)
    assert merged.rows.tolist() == rows
    assert merged.scores.tolist() == scores


def test_one_tie_over_a_whole_index():
    vectors = np.ones((500, 2), dtype=np.float32)
    assert search(flat(vectors), vectors[:1], 3).rows.tolist() == [[0, 1, 2]]


def unit_vectors(rows: int, dimension: int) -> np.ndarray:
    drawn = np.random.default_rng(5).standard_normal((rows, dimension)).astype(np.float32)
    drawn[rows // 2 :] = drawn[: rows - rows // 2]  # every vector twice: ties that cross the shards
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("faiss_type", ["Flat", "SQ8", "IVF16,Flat", "IVF16,SQ8", "RR8,IVF16,PQ8x4np"])
@pytest.mark.parametrize("queries", [1, 50])  # faiss multiplies matrices from 20 queries on
def test_split_and_merged_is_the_whole_index(tmp_path, faiss_type, queries):
    vectors = unit_vectors(2001, 32)
    index = faiss.index_factory(32, faiss_type, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.nprobe = 3  # few enough that lists run short: faiss pads with -1
    path = tmp_path / "e5.index"
    faiss.write_index(index, str(path))
    assert split(["--index_path", str(path), "--num_shards", "4", "--save_dir", str(tmp_path)]) == 0
    shards = read_shards(tmp_path / "e5.4shards")
    parts = [Shard(tmp_path / "e5.4shards", card) for card in shards]
    for num in (1, 5, 700, 2001):  # 700 is more than a shard holds
        merged = merge([part.rank_rows(vectors[:queries], num) for part in parts], num)
        whole = search(index, vectors[:queries], num)
        assert merged.rows.shape == whole.rows.shape
        assert (merged.rows == whole.rows).all()
        found = whole.rows != NO_ROW
        assert (merged.scores[found] == whole.scores[found]).all()


def test_a_shard_file_of_another_slice_is_refused(tmp_path):
    path = tmp_path / "e5.index"
    faiss.write_index(flat(unit_vectors(11, 4)), str(path))
    assert split(["--index_path", str(path), "--num_shards", "2", "--save_dir", str(tmp_path)]) == 0
    small, large = read_shards(tmp_path / "e5.2shards")
    (tmp_path / "e5.2shards" / small.file).write_bytes((tmp_path / "e5.2shards" / large.file).read_bytes())
    with pytest.raises(UserError, match=r"0000_of_0002.index holds 6 vectors, but its card says 5"):
        Shard(tmp_path / "e5.2shards", small)
    (tmp_path / "e5.2shards" / small.file).write_bytes(b"no index")
    with pytest.raises(UserError, match="is not a whole faiss index"):
        Shard(tmp_path / "e5.2shards", small)
