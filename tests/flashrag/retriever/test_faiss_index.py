import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest

from flashrag.errors import UserError
from flashrag.retriever import faiss_index
from flashrag.retriever.faiss_index import check_on_gpus, on_gpus, read_index, set_search_depth

DIMENSION, COUNT = 32, 2000
TYPES = ["Flat", "HNSW16", "IVF16,Flat", "IVF16,PQ8x4", "SQ8"]
# Reads each file named on stdin in one process, searches it where it can be read, and says which.
READER = """
import sys
import numpy as np
from pathlib import Path
from flashrag.errors import UserError
from flashrag.retriever.faiss_index import read_index
for line in sys.stdin:
    try:
        index = read_index(Path(line.strip()))
        index.search(np.ones((2, index.d), dtype=np.float32), 5)
    except UserError as error:
        print("refused" if "\\n" not in str(error) else "unreadable", flush=True)
    else:
        print("read", flush=True)
"""


@pytest.fixture(scope="module")
def vectors():
    made = np.random.default_rng(0).normal(size=(COUNT, DIMENSION)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def files(vectors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faiss")
    paths = {}
    for kind in TYPES:
        index = faiss.index_factory(DIMENSION, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        paths[kind] = folder / f"{kind}.index"
        faiss.write_index(index, str(paths[kind]))
    return paths


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_finds_a_passage_by_its_own_vector_with_a_falling_score(files, vectors, kind, mmap):
    index = read_index(files[kind], mmap)
    set_search_depth(index, 16 if "IVF" in kind else None, 64 if "HNSW" in kind else None)
    scores, rows = index.search(vectors[:100], 5)
    assert (rows[:, 0] == np.arange(100)).mean() >= (0.5 if "PQ" in kind else 1.0)
    assert (np.diff(scores, axis=1) <= 0).all()
    if "PQ" not in kind:
        assert scores[:, 0] == pytest.approx(np.ones(100), abs=0.02)


@pytest.mark.parametrize("kind", TYPES)
def test_a_mapped_index_stays_in_its_file(files, kind):
    def is_mapped():
        maps = Path("/proc/self/maps").read_text().splitlines()
        return any(line.endswith(str(files[kind])) for line in maps)

    plain = read_index(files[kind])
    assert not is_mapped()
    mapped = read_index(files[kind], mmap=True)
    assert is_mapped()
    query = np.ones((1, DIMENSION), dtype=np.float32)
    assert mapped.search(query, 5)[1].tolist() == plain.search(query, 5)[1].tolist()


def test_a_mapped_index_takes_no_memory_of_its_own(tmp_path):
    path = tmp_path / "large.index"
    index = faiss.IndexFlatIP(256)
    index.add(np.zeros((100_000, 256), dtype=np.float32))  # 98 MiB
    faiss.write_index(index, str(path))
    script = (
        "import sys, faiss; from pathlib import Path; from flashrag.retriever.faiss_index import read_index\n"
        "def anon(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))\n"
        "before = anon(); index = read_index(Path(sys.argv[1]), sys.argv[2] == 'True'); print(anon() - before)"
    )
    kib = {
        mmap: int(subprocess.check_output([sys.executable, "-c", script, str(path), str(mmap)]))
        for mmap in (True, False)
    }
    assert kib[True] < 10_000
    assert kib[False] > 90_000


@pytest.mark.parametrize("kind", ["IVF16,Flat", "IVF16,PQ8x4"])
def test_nprobe_sets_the_cells_searched(files, vectors, kind):
    index = read_index(files[kind])
    set_search_depth(index, nprobe=1, ef_search=None)
    assert (index.search(vectors[:1], COUNT)[1] >= 0).sum() < COUNT
    set_search_depth(index, nprobe=10_000, ef_search=None)  # more than there are: all
    assert (index.search(vectors[:1], COUNT)[1] >= 0).sum() == COUNT


def test_ef_search_sets_the_depth(files):
    index = read_index(files["HNSW16"])
    set_search_depth(index, nprobe=None, ef_search=77)
    assert index.hnsw.efSearch == 77


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("Flat", {"nprobe": 4, "ef_search": None}, "faiss_nprobe: 4 was given, but the index is a IndexFlatIP"),
        ("HNSW16", {"nprobe": 4, "ef_search": None}, "faiss_nprobe: 4 was given, but the index is a IndexHNSWFlat"),
        ("SQ8", {"nprobe": None, "ef_search": 9}, "faiss_ef_search: 9 was given, but the index is a IndexScalar"),
    ],
)
def test_a_depth_that_the_index_does_not_have_is_refused(files, kind, options, message):
    with pytest.raises(UserError, match=message):
        set_search_depth(read_index(files[kind]), **options)


def test_two_threads_search_one_index(files, vectors):
    index = read_index(files["HNSW16"])
    expected = index.search(vectors[:200], 5)[1].tolist()
    answers = [None] * 8

    def search(number):
        answers[number] = index.search(vectors[:200], 5)[1].tolist()

    threads = [threading.Thread(target=search, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 8


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95\x20\x00", b"IxFI", b"PK\x03\x04" + b"\x00" * 100])
def test_what_is_no_index_is_refused(tmp_path, content):
    path = tmp_path / "x.index"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"index_path: .*x\.index is not a whole faiss index"):
        read_index(path)


def damaged(whole: bytes) -> list[bytes]:
    """Cut short, first inside the header, and with a bit flipped, in the header and elsewhere."""
    chance = random.Random(0)
    contents = [whole[:length] for length in [*range(0, 120, 7), *chance.sample(range(len(whole)), 20)]]
    for offset in [*range(0, 120, 3), *chance.sample(range(len(whole)), 20)]:
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << chance.randrange(8)
        contents.append(bytes(flipped))
    return contents


def test_damage_is_refused_or_harmless_and_never_ends_the_process(files, tmp_path):
    names = []
    for kind in TYPES:
        for number, content in enumerate(damaged(files[kind].read_bytes())):
            names.append(tmp_path / f"{kind}-{number}.index")
            names[-1].write_bytes(content)
    lines = "".join(f"{name}\n" for name in names)
    # A damaged size can ask for terabytes: bounded here, as on a machine that is nearly full.
    command = f"ulimit -v 8000000; exec {sys.executable} -c '{READER}'"
    ran = subprocess.run(["bash", "-c", command], input=lines, capture_output=True, text=True, env=os.environ)
    outcomes = ran.stdout.split()
    assert ran.returncode == 0, f"after {names[: len(outcomes)][-1:]}: {ran.stderr[-2000:]}"
    assert len(outcomes) == len(names)
    assert set(outcomes) <= {"refused", "read"}
    for first in range(0, len(names), len(names) // len(TYPES)):
        assert outcomes[first : first + 17] == ["refused"] * 17, names[first]  # cut inside the header


@pytest.mark.parametrize(
    ("kind", "dimension"),
    [
        ("Flat", 768),
        ("IVF16,Flat", 768),
        ("IVF16,PQ96np", 768),
        ("IVF16,PQ96np", 384),
        ("IVF16,PQ28np", 56),
        ("IVF16,SQ8", 768),
        ("IVF16,SQ6", 768),
        ("IVF16,SQfp16", 768),
        ("IDMap,Flat", 768),
        ("OPQ64,IVF16,PQ64np", 768),
    ],
)
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_what_gpus_search_is_taken(kind, dimension, metric):
    check_on_gpus(faiss.index_factory(dimension, kind, metric))


@pytest.mark.parametrize(
    ("kind", "dimension", "words"),
    [
        ("HNSW32", 768, "the index is a IndexHNSWFlat"),
        ("SQ8", 768, "the index is a IndexScalarQuantizer"),
        ("SQfp16", 768, "the index is a IndexScalarQuantizer"),
        ("PQ64np", 768, "the index is a IndexPQ"),
        ("Flat,RFlat", 768, "the index is a IndexRefineFlat"),
        ("IDMap,HNSW32", 768, "the index is a IndexHNSWFlat"),
        ("IVF16,PQ192np", 768, "the IndexIVFPQ has 192 codes of 8 bits for 768 dimensions"),
        ("OPQ192,IVF16,PQ192np", 768, "the IndexIVFPQ has 192 codes of 8 bits for 768 dimensions"),
        ("IVF16,PQ36np", 72, "the IndexIVFPQ has 36 codes of 8 bits for 72 dimensions"),
        ("IVF16,PQ96x4np", 768, "the IndexIVFPQ has 96 codes of 4 bits for 768 dimensions"),
        ("IVF16,PQ96x4fs", 768, "the index is a IndexIVFPQFastScan"),
        ("IVF16,SQbf16", 768, "the IndexIVFScalarQuantizer has 1536 bytes for 768 dimensions"),
        ("IVF16_HNSW8,Flat", 768, "the cells of the IndexIVFFlat are found by a IndexHNSWFlat"),
    ],
)
def test_what_no_gpu_searches_is_refused_before_a_gpu_is_looked_for(kind, dimension, words):
    with pytest.raises(UserError) as refused:
        on_gpus(faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT))
    told = str(refused.value)
    assert told.startswith(f"faiss_gpu: true was given, but {words}")
    assert "GPUs search Flat, IVF-Flat, IVF-PQ with 1, 2, 3, 4, 8, " in told
    assert "set faiss_gpu to false, to search on the processors, or build one of these with --faiss_type" in told


def test_more_cells_than_a_gpu_looks_at_are_refused():
    index = faiss.index_factory(8, "IVF4096,Flat", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = 2048
    check_on_gpus(index)
    index.nprobe = 2049
    with pytest.raises(UserError, match=r"IndexIVFFlat looks at 2049 cells, on GPUs at most 2048 \(faiss_nprobe\)"):
        check_on_gpus(index)


def test_codes_of_whole_vectors_are_refused():
    index = faiss.index_factory(64, "IVF16,PQ16np", faiss.METRIC_INNER_PRODUCT)
    index.by_residual = False
    with pytest.raises(UserError, match="has codes of whole vectors, expected of residuals"):
        check_on_gpus(index)


def test_a_failure_of_faiss_on_the_gpus_is_told_in_a_line(monkeypatch):
    """There is no GPU here: the two functions of faiss that look for one fail as on a machine whose GPU is full."""
    reason = "Error: 'err == cudaSuccess' failed: Failed to cudaMalloc 60000 bytes\non device 0"

    def full(*_, **__):
        raise RuntimeError(f"Error in void* allocate(int) at res.cpp:1: {reason}")

    monkeypatch.setattr(faiss_index, "check_gpus", lambda _: None)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", lambda: type("Options", (), {})(), raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", full, raising=False)
    with pytest.raises(UserError, match=r"the GPUs \(Failed to cudaMalloc 60000 bytes on device 0\); GPUs search Flat"):
        on_gpus(faiss.IndexFlatIP(8))
