import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import pytest

from flashrag.preflight import Finding, Severity, examine
from flashrag.retriever.index_card import IndexCard, card_path
from flashrag.retriever.index_shards import main as split
from flashrag.retriever.preflight.part import PART_RULES, PartFacts, Shape
from tests.flashrag.retriever.preflight.conftest import DIMENSION, Files, write_corpus, write_index


def found(files: Files, sharded: bool = False, **changes: Any) -> list[Finding]:
    return examine(PART_RULES, PartFacts(files.settings(**changes), sharded))


def errors(files: Files, **changes: Any) -> dict[str, str]:
    return {each.rule: each.message for each in found(files, **changes) if each.severity is Severity.ERROR}


def test_nothing_is_said_about_good_files_and_nothing_is_written(files):
    before = files.listed()
    assert found(files) == []
    assert PartFacts(files.settings()).index == Shape("IndexFlatIP", 6, 4)
    assert files.listed() == before


def test_all_that_is_missing_is_told_at_once(files):
    told = errors(files, retrieval_model_path="/no/model", index_path="/no/index", corpus_path="/no/corpus")
    assert list(told) == ["retriever.encoder", "retriever.index", "retriever.corpus"]
    for rule, message in told.items():
        assert f"/no/{ {'encoder': 'model'}.get(rule[10:], rule[10:]) }" in message


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:30])  # within the header: mapped, this ends the process


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "damage", "rule", "words"),
    [
        ("index", empty, "retriever.index", "is empty"),
        ("index", cut, "retriever.index", "is not a whole faiss index"),
        ("index", folder_instead, "retriever.index", "is a folder, but a dense index is a file"),
        ("corpus", empty, "retriever.corpus", "is empty"),
        ("corpus", cut, "retriever.corpus", "line 1"),
        ("corpus", folder_instead, "retriever.corpus", "is a folder, expected a file"),
    ],
)
def test_a_damaged_file_is_named(files, name, damage: Callable[[Path], None], rule, words):
    damage(getattr(files, name))
    told = errors(files)
    assert list(told) == [rule]
    assert words in told[rule]


def test_weights_that_are_cut_short_are_told(files):
    weights = files.encoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors is damaged" in errors(files)["retriever.encoder"]


def test_files_of_different_sizes_do_not_fit(files):
    write_corpus(files.corpus, rows=7)
    assert "the index holds 6 passages, but corpus_path has 7" in errors(files)["retriever.fit"]
    write_corpus(files.corpus)
    write_index(files.index, dimension=8)
    assert "the encoder makes 4 dimensions, but the index has 8" in errors(files)["retriever.fit"]


def test_an_index_of_another_corpus_does_not_fit(files):
    card = IndexCard(retrieval_method="e5", count=6, corpus_sha256="0" * 64, corpus="c", dimension=4)
    card.write(card_path(files.index, "e5"))
    assert "corpus_path: this corpus" in errors(files)["retriever.fit"]


def test_a_search_depth_that_the_index_lacks_is_told(files):
    assert "faiss_nprobe: 4 was given, but the index is a IndexFlat" in errors(files, faiss_nprobe=4)["retriever.index"]


def test_an_index_that_no_gpu_searches_is_told(files):
    write_index(files.index, kind="HNSW4")
    told = errors(files, faiss_gpu=True)["retriever.index"]
    assert told.startswith("faiss_gpu: true was given, but the index is a IndexHNSWFlat; GPUs search Flat, IVF-Flat")
    assert errors(files) == {}


def test_an_index_of_squared_distances_fits(files):
    faiss.write_index(faiss.index_factory(DIMENSION, "Flat", faiss.METRIC_L2), str(files.index))
    assert "measures metric" not in errors(files).get("retriever.index", "")
    assert PartFacts(files.settings()).index == Shape("IndexFlatL2", 0, DIMENSION)


def test_longer_queries_than_the_encoder_takes_are_warned_about(files):
    (finding,) = found(files, retrieval_query_max_length=17)
    assert (finding.severity, finding.rule) == (Severity.WARNING, "retriever.length")
    assert "is 17, but the encoder takes 16 tokens: queries are cut there" in finding.message


def test_a_full_disk_is_told_before_the_corpus_is_copied(files, monkeypatch):
    monkeypatch.setattr("flashrag.retriever.preflight.part.free_bytes", lambda _: 10)
    assert "0 MiB are free; free some" in errors(files)["retriever.cache"]


def test_a_large_corpus_is_taken_for_that_of_the_card(files, large):
    large()
    card = IndexCard(retrieval_method="e5", count=7, corpus_sha256="0" * 64, corpus="c", dimension=4)
    assert [finding.severity for finding in found(files)] == [Severity.NOTE], "without a card the count is not compared"
    card.write(card_path(files.index, "e5"))
    told = errors(files)
    assert "model_sha256" not in told
    assert "retrieval_model_path: this encoder" in told["retriever.fit"]


def test_shards_are_counted_together(files):
    assert split(["--index_path", str(files.index), "--num_shards", "2", "--save_dir", str(files.folder)]) == 0
    folder = files.folder / "e5.2shards"
    assert found(files, sharded=True, index_path=folder) == []
    alone = errors(files, index_path=folder)
    assert "holds the shards of an index, which a Ray cluster serves" in alone["retriever.index"]
    part = PartFacts(files.settings(index_path=folder), sharded=True)
    assert part.index == Shape("shards", 6, None)
    next(folder.glob("shard_0001*.index")).unlink()
    ((rule, message),) = [
        (each.rule, each.message)
        for each in found(files, sharded=True, index_path=folder)
        if each.severity is Severity.ERROR
    ]
    assert rule == "retriever.index"
    assert "is missing; copy it here" in message


def test_a_bm25_index_needs_its_card(files):
    told = errors(files, retrieval_method="bm25", retrieval_model_path=None)
    assert "is a file, but a bm25 index is a folder" in told["retriever.index"]
    (files.folder / "bm25").mkdir()
    (files.folder / "bm25" / "index_card.json").write_text(json.dumps({"retrieval_method": "bm25"}))
    told = errors(files, retrieval_method="bm25", retrieval_model_path=None, index_path=files.folder / "bm25")
    assert "cannot be read (count is not set" in told["retriever.index"]
