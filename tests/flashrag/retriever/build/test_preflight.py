"""What is wrong with a build is told before anything is encoded or written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flashrag.preflight import Finding, Severity, examine
from flashrag.retriever.build.dense_index import new_manifest
from flashrag.retriever.build.embeddings import MANIFEST_NAME, PartFolder
from flashrag.retriever.build.options import parse_args
from flashrag.retriever.build.preflight import BUILD_RULES, BuildFacts
from flashrag.retriever.index_builder import main
from flashrag.system.files import locked
from tests.flashrag.retriever.preflight.conftest import write_corpus, write_encoder

ROWS = 10
Flags = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "ein Ordner ½"
    folder.mkdir()
    write_corpus(folder / "c.jsonl", ROWS)
    write_encoder(folder / "encoder", max_position_embeddings=256)
    return folder


@pytest.fixture
def flags(folder: Path) -> Flags:
    """`flags(*more, method="e5")`: those of a good build."""

    def make(*more: str, method: str = "e5") -> list[str]:
        model = [] if method == "bm25" else ["--model_path", str(folder / "encoder")]
        common = ["--corpus_path", str(folder / "c.jsonl"), "--save_dir", str(folder / "out")]
        return ["--retrieval_method", method, *model, *common, *more]

    return make


def facts_of(flags: list[str]) -> BuildFacts:
    return BuildFacts(parse_args(flags))


def found(flags: list[str]) -> list[Finding]:
    return examine(BUILD_RULES, facts_of(flags))


@pytest.mark.parametrize("method", ["e5", "bm25"])
def test_nothing_is_said_about_a_good_build_and_nothing_is_written(flags, folder, method):
    before = set(folder.rglob("*"))
    assert found(flags(method=method)) == []
    assert set(folder.rglob("*")) == before


def test_all_faults_are_told_at_once(flags, folder):
    (folder / "encoder" / "model.safetensors").write_bytes(b"cut")
    (folder / "out").write_text("a file")
    more = ["--corpus_path", "no/such", "--save_embedding", "--embedding_path", "no/vectors", "--faiss_type", "a/b"]
    told = found(flags(*more))
    assert [each.rule for each in told if each.severity is Severity.ERROR] == [
        "build.flags",
        "build.flags",
        "build.encoder",
        "build.corpus",
        "build.folder",
        "build.vectors",
    ]


def test_sizes_are_counted_before_anything_is_built(flags):
    facts = facts_of(flags("--embedding_dtype", "float16"))
    assert facts.vector_bytes == 10 * 4 * 2
    assert facts.index_bytes == 10 * 4 * 4
    assert facts.disk_bytes == 80 + 160 + facts.options.corpus_path.stat().st_size
    assert facts_of(flags("--embedding_path", "v")).vector_bytes == 0


def test_a_disk_that_would_be_full_is_told(flags, monkeypatch):
    monkeypatch.setattr("flashrag.preflight.machine.free_bytes", lambda _: 300)
    finding, *_ = found(flags())
    assert (finding.severity, finding.rule) == (Severity.ERROR, "build.folder")
    assert "but index, vectors and the corpus's copy need" in finding.message


def test_too_little_memory_is_warned_about(flags, monkeypatch):
    monkeypatch.setattr("flashrag.preflight.machine._memory_bytes", lambda: 10 * 3900 - 1)
    (finding,) = found(flags(method="bm25"))
    assert (finding.severity, finding.rule) == (Severity.WARNING, "build.memory")
    assert "give fewer passages, or a dense index" in finding.message


def test_longer_passages_than_the_encoder_takes_are_warned_about(flags):
    (finding,) = found(flags("--max_length", "257"))
    assert (finding.severity, finding.rule) == (Severity.WARNING, "build.length")
    assert finding.message.startswith("--max_length 257: the encoder takes 256 tokens")


def test_gpus_that_are_not_there(flags, monkeypatch):
    monkeypatch.setattr("flashrag.retriever.build.preflight.count_gpus", lambda: 0)
    told = [(each.severity, each.message.partition(" was ")[0]) for each in found(flags("--use_fp16", "--faiss_gpu"))]
    assert told == [
        (Severity.ERROR, "--faiss_gpu"),
        (Severity.NOTE, "--use_fp16 has no effect: this machine shows no GPU"),
    ]


def test_a_type_without_cells_is_not_trained_on_gpus(flags, monkeypatch):
    monkeypatch.setattr("flashrag.retriever.build.preflight.check_gpus", lambda _: None)
    (finding,) = found(flags("--faiss_gpu", "--faiss_type", "SQ8"))
    assert (finding.severity, finding.message) == (
        Severity.NOTE,
        "--faiss_gpu has no effect: SQ8 has no cells to train",
    )
    assert found(flags("--faiss_gpu", "--faiss_type", "IVF2,Flat")) == []


@pytest.mark.parametrize(
    ("faiss_type", "words"),
    [
        ("IVF-PQ", "IVF-PQ was given for 10 passages; it needs at least 9984"),
        ("Round", "'Round' is none of Flat, HNSW, IVF-Flat, IVF-PQ, SQ8"),
        ("IVF64,Flat", "cannot be trained on 10 passages"),
    ],
)
def test_a_type_that_cannot_be_built_is_told(flags, faiss_type, words):
    (finding,) = found(flags("--faiss_type", faiss_type))
    assert (finding.severity, finding.rule) == (Severity.ERROR, "build.type")
    assert words in finding.message


def test_what_stands_in_the_place_of_the_index_is_told(flags, folder):
    (folder / "out" / "e5_Flat.index").mkdir(parents=True)
    (folder / "out" / "bm25").write_text("")
    (finding,) = found(flags())
    assert "e5_Flat.index is a folder in the index's place; remove it" in finding.message
    (finding,) = found(flags(method="bm25"))
    assert "bm25 is a file in the index's place; remove it" in finding.message


def test_vectors_of_another_shape_are_told(flags, folder):
    np.save(folder / "v.npy", np.zeros((10, 3), dtype=np.float32))
    (finding,) = found(flags("--embedding_path", str(folder / "v.npy")))
    assert finding.rule == "build.vectors"
    assert "of shape (10, 3), expected float32 or float16 of shape (10, 4)" in finding.message
    np.save(folder / "v.npy", np.zeros((10, 4), dtype=np.float32))
    assert found(flags("--embedding_path", str(folder / "v.npy"))) == []


def leave_parts(facts: BuildFacts) -> Path:
    """The first of two parts of an interrupted run."""
    path = facts.options.partial_embeddings
    path.mkdir(parents=True)
    assert facts.model_folder is not None
    manifest = new_manifest(facts.options, facts.corpus, facts.model_folder)
    manifest.write(path / MANIFEST_NAME)
    PartFolder(path, manifest).write(0, 4, [np.zeros((5, 4), dtype=np.float32)])
    return path


def test_an_interrupted_run_goes_on_with_the_same_flags_only(flags):
    path = leave_parts(facts_of(flags("--part_size", "5")))
    (finding,) = found(flags("--part_size", "5"))
    assert finding.severity is Severity.NOTE
    assert finding.message.endswith("of vectors of an interrupted run, which goes on")
    assert facts_of(flags("--part_size", "5")).disk_bytes < facts_of(flags()).index_bytes + 160 + 400
    (finding,) = found(flags("--part_size", "5", "--max_length", "64"))
    assert finding.severity is Severity.ERROR
    assert "max_length is 256 there, but 64 here" in finding.message
    with locked(path):
        (finding,) = found(flags("--part_size", "5"))
    assert "another build is at work there" in finding.message


def test_a_large_corpus_is_estimated(flags, large):
    large()
    told = found(flags())
    assert [(each.severity, each.rule) for each in told] == [(Severity.NOTE, "build.corpus")]
    assert facts_of(flags()).vector_bytes == 10 * 4 * 4


def test_the_check_prints_the_plan_and_writes_nothing(flags, folder, capsys):
    assert main(flags("--check", "--part_size", "4", "--faiss_type", "SQ8")) == 0
    told = capsys.readouterr().out
    for line in (
        f"  passages  10 in {folder}/c.jsonl",
        f"  encoder   BertModel, 0 MiB, 256 tokens ({folder}/encoder)",
        "  type      SQ8 (SQ8)",
        f"  vectors   4 dimensions, 3 parts, 0 MiB in {folder}/out/emb_e5.partial",
        f"  index     about 0 MiB in {folder}/out/e5_SQ8.index",
        "  0 errors: this would start",
    ):
        assert f"{line}\n" in told
    assert not (folder / "out").exists()
    assert main([*flags("--check", "--corpus_path", "none")]) == 2
    told = capsys.readouterr().out
    assert "  passages  unknown\n" in told
    assert "error: corpus_path: no file at none" in told


def test_a_configuration_that_is_no_object_is_told(flags, folder):
    (folder / "encoder" / "config.json").write_text(json.dumps([]))
    assert "build.encoder" in [each.rule for each in found(flags()) if each.severity is Severity.ERROR]
