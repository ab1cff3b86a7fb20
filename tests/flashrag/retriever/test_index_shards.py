import json
import resource
import subprocess
import sys

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flashrag.retriever.index_shards as index_shards
from flashrag.errors import EXIT_INTERRUPTED, UserError
from flashrag.retriever.index_card import IndexCard
from flashrag.retriever.index_shards import main as split
from flashrag.retriever.index_shards import read_shards, row_ranges

ROWS, DIMENSION = 1201, 16
CARD = IndexCard(retrieval_method="e5", count=ROWS, corpus_sha256="0" * 64, corpus="c.jsonl", dimension=DIMENSION)


def vectors(rows: int = ROWS, dimension: int = DIMENSION) -> np.ndarray:
    drawn = np.random.default_rng(7).standard_normal((rows, dimension)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def write(folder, faiss_type, card=None, rows=ROWS):
    """A faiss index over `vectors()`, with its card where one is given."""
    index = faiss.index_factory(DIMENSION, faiss_type, faiss.METRIC_INNER_PRODUCT)
    index.verbose = False
    if faiss_type.startswith("OPQ"):
        faiss.downcast_VectorTransform(index.chain.at(0)).niter = 1  # of 50: any rotation will do
    index.train(vectors())
    if rows:
        index.add(vectors(rows))
    path = folder / "e5.index"
    faiss.write_index(index, str(path))
    if card is not None:
        card.write(path.with_name("e5.index.json"))
    return path


@pytest.mark.parametrize(("faiss_type", "row_offsets"), [("Flat", (0, 400, 800)), ("IVF8,Flat", (0, 0, 0))])
def test_what_is_written(tmp_path, capsys, faiss_type, row_offsets):
    path = write(tmp_path, faiss_type, CARD)
    for _ in range(2):  # a second run replaces the first
        assert split(["--index_path", str(path), "--num_shards", "3", "--save_dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"shards: {tmp_path}/out/e5.3shards (3)"
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["e5.3shards"]
    shards = read_shards(tmp_path / "out" / "e5.3shards")
    assert {card.total_rows for card in shards} == {1201}
    assert all(card.index_card == CARD for card in shards)
    # 1201 rows: 400, 400, 401
    assert [(card.first_row, card.count) for card in shards] == [(0, 400), (400, 400), (800, 401)]
    assert tuple(card.row_offset for card in shards) == row_offsets
    assert sorted(entry.name for entry in (tmp_path / "out" / "e5.3shards").iterdir()) == [
        f"shard_000{number}_of_0003.index{end}" for number in range(3) for end in ("", ".json")
    ]


# "np": the codes are not also put into an order that only the polysemous search, which is not ours, makes use of.
CODES = ["Flat", "SQ8", "SQfp16", "PQ8x4np", "OPQ8,PQ8x4np", "PCA8,Flat"]
LISTS = ["IVF8,Flat", "IVF8,SQ8", "IVF8,PQ8x4np", "OPQ8,IVF8,PQ8x4np", "IVF8_HNSW4,Flat"]


@pytest.mark.parametrize("faiss_type", CODES + LISTS)
def test_the_shards_hold_every_vector_of_the_index_as_it_is_stored(tmp_path, faiss_type):
    path = write(tmp_path, faiss_type)
    assert split(["--index_path", str(path), "--num_shards", "3", "--save_dir", str(tmp_path)]) == 0
    whole = faiss.read_index(str(path))
    shards = read_shards(tmp_path / "e5.3shards")
    found = {}
    for card in shards:
        part = faiss.read_index(str(tmp_path / "e5.3shards" / card.file))
        assert part.ntotal == card.count
        # Every list, every code: the search of all of a part gives each of its rows once, with its exact score.
        for index in (part, whole):
            ivf = faiss.try_extract_index_ivf(index)
            if ivf is not None:
                ivf.nprobe = 8
        scores, rows = part.search(vectors()[:1], part.ntotal)
        found |= {int(row) + card.row_offset: score for row, score in zip(rows[0], scores[0], strict=True)}
    scores, rows = whole.search(vectors()[:1], ROWS)
    assert found == dict(zip(rows[0].tolist(), scores[0], strict=True))
    assert len(found) == ROWS


@pytest.mark.parametrize("faiss_type", ["HNSW8", "HNSW8,SQ8", "IVF8,PQ8x4fs", "PQ8x4fs", "IVF8,SQ8,RFlat"])
def test_a_type_without_an_exact_split_is_refused(tmp_path, capsys, faiss_type):
    path = write(tmp_path, faiss_type)
    assert split(["--index_path", str(path), "--num_shards", "2", "--save_dir", str(tmp_path / "out")]) == 2
    assert "cannot be split exactly" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_readable_line(tmp_path, capsys):
    (tmp_path / "bm25").mkdir()
    (tmp_path / "text.index").write_text("no index")
    flat, empty = write(tmp_path, "Flat"), tmp_path / "empty"
    empty.mkdir()
    for path, num_shards, message in [
        (tmp_path / "none.index", 2, "nothing at"),
        (tmp_path / "bm25", 2, "a bm25 index is not split"),
        (tmp_path / "text.index", 2, "is not a whole faiss index"),
        (flat, 1202, "--num_shards 1202: the index holds 1201 vectors; give 1 to 1201"),
        (write(empty, "Flat", rows=0), 1, "--num_shards 1: the index holds 0 vectors"),
    ]:
        flags = ["--index_path", str(path), "--num_shards", str(num_shards), "--save_dir", str(tmp_path / "out")]
        assert split(flags) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert message in errors[0]
    assert split(["--index_path", str(flat), "--num_shards", "2", "--save_dir", "/proc/none"]) == 2
    assert "--save_dir=/proc/none: 0 MiB are free" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--num_shards", "0"], ["--num_shards", "many"], ["--shards", "2"]])
def test_bad_flags_exit_with_2(flags, capsys):
    assert split(["--index_path", "i", "--num_shards", "2", *flags]) == 2
    assert flags[0] in capsys.readouterr().err


def test_a_full_disk_and_an_interruption_leave_what_stood_there(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, "Flat")
    flags = ["--index_path", str(path), "--num_shards", "2", "--save_dir", str(tmp_path / "out")]
    assert split(flags) == 0
    before = {entry: entry.read_bytes() for entry in (tmp_path / "out").glob("*/*")}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # the first shard has 38 kB
    try:
        assert split(flags) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "cannot be written there" in capsys.readouterr().err

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_shards.ShardCard, "write", interrupted)
    assert split(flags) == EXIT_INTERRUPTED
    assert {entry: entry.read_bytes() for entry in (tmp_path / "out").glob("*/*")} == before
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["e5.2shards"]


@pytest.fixture
def shards(tmp_path):
    path = write(tmp_path, "Flat", CARD)
    assert split(["--index_path", str(path), "--num_shards", "3", "--save_dir", str(tmp_path)]) == 0
    return tmp_path / "e5.3shards"


def test_a_missing_shard_is_refused(shards):
    for path in shards.glob("shard_0001*"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds 2 of 3 shards, missing \[1\]"):
        read_shards(shards)


def test_a_truncated_shard_is_refused(shards):
    path = shards / "shard_0002_of_0003.index"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard_0002_of_0003.index has 25708 bytes, but its card says 25709"):
        read_shards(shards)


def test_a_shard_of_another_split_is_refused(shards):
    path = shards / "shard_0002_of_0003.index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "split": "another"}))
    with pytest.raises(UserError, match="shards of different splits"):
        read_shards(shards)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"index_card": {}}'])
def test_a_damaged_card_is_refused(shards, text):
    (shards / "shard_0002_of_0003.index.json").write_text(text)
    with pytest.raises(UserError, match=r"a shard's card .* cannot be read"):
        read_shards(shards)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no shards"):
        read_shards(tmp_path)


@given(count=st.integers(1, 10_000), num_shards=st.integers(1, 4096))
def test_row_ranges_cover_every_row_once(count, num_shards):
    if num_shards > count:
        with pytest.raises(UserError, match="give 1 to"):
            row_ranges(count, num_shards)
        return
    ranges = row_ranges(count, num_shards)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(count))
    sizes = {stop - start for start, stop in ranges}
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)


SPLIT_IN_LITTLE_MEMORY = """
import re, resource, sys
import faiss, numpy, tqdm
from flashrag.retriever.index_shards import main
data_kib = int(re.search(r"VmData:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_DATA, (data_kib * 1024 + 40 * 2**20, -1))
sys.exit(main(sys.argv[1:]))
"""


def test_one_shard_is_in_memory_at_a_time(tmp_path):
    rows, dimension = 100_000, 256  # 98 MiB; a shard of sixteen has 6 MiB, one of two 49 MiB
    index = faiss.IndexFlatIP(dimension)
    index.add(np.random.default_rng(7).random((rows, dimension), np.float32))
    path = tmp_path / "e5.index"
    faiss.write_index(index, str(path))
    command = [sys.executable, "-c", SPLIT_IN_LITTLE_MEMORY, "--index_path", str(path), "--save_dir", str(tmp_path)]
    done = [subprocess.run([*command, "--num_shards", count], capture_output=True, text=True) for count in ("16", "2")]
    assert [run.returncode for run in done] == [0, 1], done
    assert "MemoryError" in done[1].stderr
    assert len(read_shards(tmp_path / "e5.16shards")) == 16


def test_the_check_says_how_an_index_would_be_split(tmp_path, capsys):
    folder = tmp_path / "ein Ordner ½"
    folder.mkdir()
    path = write(folder, "Flat", CARD)
    command = ["--index_path", str(path), "--num_shards", "3", "--save_dir", str(folder / "out"), "--check"]
    assert split(command) == 0
    told = capsys.readouterr().out
    # 1201 x 16 float32 and a header of 45 bytes
    for line in (
        "  index    IndexFlatIP, 1,201 x 16",
        "  card     copied to every shard",
        "  shards   3 of 401 rows, about 0 MiB each",
        f"  folder   {folder}/out/e5.3shards",
        "  0 errors: this would start",
    ):
        assert f"{line}\n" in told
    assert not (folder / "out").exists()


def test_all_that_keeps_an_index_from_being_split_is_told_at_once(tmp_path, capsys):
    path = write(tmp_path, "Flat")
    (tmp_path / "e5.2000shards").write_text("")
    assert split(["--index_path", str(path), "--num_shards", "2000", "--save_dir", str(tmp_path), "--check"]) == 2
    told = capsys.readouterr().out
    assert "error: --num_shards 2000: the index holds 1201 vectors; give 1 to 1201 [split.shards]" in told
    assert "e5.2000shards is a file in the shards' place; remove it [split.folder]" in told
    path.write_bytes(path.read_bytes()[:30])
    assert split(["--index_path", str(path), "--num_shards", "2", "--check"]) == 2
    assert "is not a whole faiss index" in capsys.readouterr().out
