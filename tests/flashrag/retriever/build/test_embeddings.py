import numpy as np
import pytest

from flashrag.errors import UserError
from flashrag.retriever.build.embeddings import Manifest, open_parts, read_embeddings, read_manifest

MANIFEST = Manifest(
    corpus_sha256="c" * 64,
    count=5,
    model_sha256="m" * 64,
    pooling="mean",
    passage_instruction="passage: ",
    max_length=256,
    use_fp16=False,
    dtype="float32",
    part_size=2,  # parts of 2, 2 and 1
)
VECTORS = np.arange(15, dtype=np.float32).reshape(5, 3)


def write(folder, numbers, manifest=MANIFEST):
    with open_parts(folder, manifest) as parts:
        for number in numbers:
            rows = parts.rows[number]
            parts.write(number, 3, [VECTORS[rows.start : rows.start + 1], VECTORS[rows.start + 1 : rows.stop]])
    return parts


def everything(embeddings, rows=2):
    return np.concatenate(list(embeddings.blocks(rows)))


@pytest.mark.parametrize(("dtype", "block"), [("float32", 1), ("float32", 4), ("float16", 2)])
def test_vectors_come_back_in_order(tmp_path, dtype, block):
    parts = write(tmp_path / "e", range(3), MANIFEST.model_copy(update={"dtype": dtype}))
    embeddings = parts.embeddings()
    assert (embeddings.count, embeddings.dimension, len(parts.rows)) == (5, 3, 3)
    found = everything(embeddings, block)
    assert found.dtype == np.float32
    assert np.array_equal(found, VECTORS)  # whole numbers below 2048 are exact in half precision
    assert np.array_equal(embeddings.rows([0, 2, 4]), VECTORS[[0, 2, 4]])
    assert all(len(some) <= block for some in embeddings.blocks(block))


def test_a_sample_is_the_same_every_time_and_has_no_row_twice(tmp_path):
    embeddings = write(tmp_path / "e", range(3)).embeddings()
    sample = embeddings.sample(3)
    assert np.array_equal(sample, embeddings.sample(3))
    rows = sample[:, 0] / 3
    assert len(set(rows)) == 3
    assert set(rows) <= {0, 1, 2, 3, 4}
    assert np.array_equal(embeddings.sample(9), VECTORS)


def test_a_run_goes_on_at_the_first_missing_part(tmp_path):
    parts = write(tmp_path / "e", [0])
    assert parts.missing() == [1, 2]
    with pytest.raises(UserError, match=r"holds 1 of 3 parts; finish it first"):
        parts.embeddings()
    assert np.array_equal(everything(write(tmp_path / "e", [1, 2]).embeddings()), VECTORS)


def test_a_part_that_was_cut_short_or_is_of_another_size_counts_as_missing(tmp_path):
    parts = write(tmp_path / "e", range(3))
    first, second = tmp_path / "e" / "00000.npy", tmp_path / "e" / "00001.npy"
    first.write_bytes(first.read_bytes()[:-1])
    np.save(second, VECTORS[:1])
    assert parts.missing() == [0, 1]


def test_a_part_appears_whole_or_not_at_all(tmp_path):
    def interrupted():
        yield VECTORS[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_parts(tmp_path / "e", MANIFEST) as parts:
        parts.write(0, 3, [VECTORS[:2]])
        parts.write(1, 3, interrupted())
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["00000.npy", "manifest.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus_sha256": "d" * 64}, "corpus_sha256 is 'cccc.*' there, but 'dddd.*' here"),
        ({"model_sha256": "n" * 64}, "model_sha256 is 'mmmm.*' there, but 'nnnn.*' here"),
        ({"pooling": "cls", "max_length": 512}, "pooling is 'mean' .* 'cls' here; max_length is 256 there, but 512"),
        ({"passage_instruction": ""}, "passage_instruction is 'passage: ' there, but '' here"),
        ({"part_size": 3}, "part_size is 2 there, but 3 here"),
    ],
)
def test_vectors_of_another_run_are_refused_with_both_values_and_kept(tmp_path, change, message):
    write(tmp_path / "e", [0])
    with pytest.raises(UserError, match=message), open_parts(tmp_path / "e", MANIFEST.model_copy(update=change)):
        pass
    assert read_manifest(tmp_path / "e") == MANIFEST
    assert (tmp_path / "e" / "00000.npy").is_file()


def test_a_folder_without_parts_is_taken_over_and_removed_when_nothing_comes_of_it(tmp_path):
    folder = tmp_path / "e"
    folder.mkdir()
    MANIFEST.write(folder / "manifest.json")  # a run that was killed before its first part
    with open_parts(folder, MANIFEST.model_copy(update={"pooling": "cls"})):
        manifest = read_manifest(folder)
        assert manifest is not None
        assert manifest.pooling == "cls"
    assert not folder.exists()


def test_a_run_that_an_earlier_version_began_goes_on(tmp_path):
    write(tmp_path / "e", [0])
    manifest = tmp_path / "e" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("part_size", "shard_size"))
    assert np.array_equal(everything(write(tmp_path / "e", [1, 2]).embeddings()), VECTORS)


def test_two_builds_in_one_folder_are_refused(tmp_path):
    with (
        open_parts(tmp_path / "e", MANIFEST),
        pytest.raises(UserError, match="another build is at work there"),
        open_parts(tmp_path / "e", MANIFEST),
    ):
        pass


@pytest.mark.parametrize("damage", ["{", "[]", '{"count": 5}'])
def test_a_damaged_manifest_is_refused(tmp_path, damage):
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read .*; remove the folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("kind", ["npy", "npy of float16", "FlashRAG's raw float32"])
def test_vector_files_are_read(tmp_path, kind):
    path = tmp_path / ("v.npy" if "npy" in kind else "emb_e5.memmap")
    if "npy" in kind:
        np.save(path, VECTORS.astype(np.float16) if "float16" in kind else VECTORS)
    else:
        VECTORS.tofile(path)
    assert np.array_equal(everything(read_embeddings(path, 5, 3)), VECTORS)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (VECTORS[:4], r"holds float32 of shape \(4, 3\), expected float32 or float16 of shape \(5, 3\)"),
        (VECTORS[:, :2], r"shape \(5, 2\), expected .*\(5, 3\): 5 passages in the corpus, 3 dimensions"),
        (VECTORS.astype(np.float64), r"holds float64"),
        (VECTORS.reshape(-1), r"not a readable \.npy file"),
        (np.array([{}], dtype=object), r"not a readable \.npy file"),  # a pickle inside is never opened
    ],
)
def test_npy_files_that_do_not_fit_are_refused(tmp_path, array, message):
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        read_embeddings(tmp_path / "v.npy", 5, 3)


def test_a_raw_file_of_another_size_is_refused(tmp_path):
    VECTORS[:4].tofile(tmp_path / "v.memmap")  # 4 * 3 * 4 = 48 bytes
    with pytest.raises(UserError, match=r"holds float32 of shape \(4, 3\), expected .*: 5 passages"):
        read_embeddings(tmp_path / "v.memmap", 5, 3)
