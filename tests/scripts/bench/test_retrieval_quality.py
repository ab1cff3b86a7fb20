import json

import pytest

from flashrag.questions import Question, read_each
from flashrag.records import read_records
from flashrag.retriever.index_builder import main as build
from scripts.bench.retrieval_quality import gold_question, main, mean_recall

PASSAGES = {"a": "Rome Italy", "b": "Paris France", "c": "Rome Paris railway", "d": "whale"}
QUESTIONS = [("whale?", ["d"]), ("Rome Paris Italy?", ["a", "b"]), ("jazz?", ["b"])]


@pytest.fixture
def world(tmp_path):
    """A corpus with its bm25 index, a configuration and a question file."""
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"id": key, "contents": text}) + "\n" for key, text in PASSAGES.items()))
    assert build(["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(tmp_path)]) == 0
    config = {"retrieval_method": "bm25", "index_path": str(tmp_path / "bm25"), "corpus_path": str(corpus)}
    (tmp_path / "sparse.yaml").write_text(json.dumps({**config, "port": 8000}))  # JSON is YAML
    write_questions(tmp_path, QUESTIONS)
    return tmp_path


def write_questions(folder, questions):
    lines = [{"question": text, "metadata": {"golden_doc_ids": gold}} for text, gold in questions]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(folder):
    return main(["--config", str(folder / "sparse.yaml"), "--questions", str(folder / "q.jsonl")])


def test_figures_of_a_small_corpus(world, capsys):
    assert run(world) == 0
    *table, last = capsys.readouterr().out.splitlines()[-4:]
    # whale: 1. Rome Paris Italy: among two are a and c (two words each), b (one word) comes third. jazz: nothing.
    assert table == [
        "| data set | questions | sparse recall@2 | sparse recall@5 |",
        "| --- | ---: | ---: | ---: |",
        "| q | 3 | 0.500 | 0.667 |",  # (1 + 1/2 + 0) / 3 and (1 + 2/2 + 0) / 3
    ]
    assert json.loads(last)["recall"]["sparse"]["q"] == {"recall@2": 0.5, "recall@5": pytest.approx(2 / 3)}


def test_recall_counts_a_gold_passage_once():
    questions = [Question("", "", (), {"golden_doc_ids": [*gold]}) for gold in ("ab", "c")]
    assert mean_recall(questions, [["a", "a"], ["x", "c"]], 1) == 0.25  # (1/2 + 0) / 2
    assert mean_recall(questions, [["a", "a"], ["x", "c"]], 2) == 0.75  # (1/2 + 1) / 2


def test_gold_passages_outside_the_corpus_are_refused(world, capsys):
    write_questions(world, [("whale?", ["d", "z"])])
    assert run(world) == 2
    assert "1 gold passages of q are not in the corpus ('z', …)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not valid JSON"),
        ('{"question": "x"}', "line 2: expected"),
        ('{"question": "x", "metadata": {"golden_doc_ids": []}}', "line 2: expected"),
    ],
)
def test_a_bad_question_is_named_by_its_line(tmp_path, line, message):
    write_questions(tmp_path, QUESTIONS[:1])
    with (tmp_path / "q.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(Exception, match=message):
        read_each(read_records(tmp_path / "q.jsonl"), tmp_path / "q.jsonl", gold_question)
