"""Every original format by hand, and the real files where they are at hand."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flashrag.dataset import DATASETS, DatasetSettings, Question, load_questions
from flashrag.metrics import supporting_documents
from scripts.convert_data import METADATA, main

HOTPOT = {
    "_id": "5a", "question": "Same nationality?", "answer": "yes", "type": "comparison", "level": "hard",
    "supporting_facts": [["Scott", 0], ["Ed", 0]], "context": [["Scott", ["He is.", " So."]], ["Other", ["No."]]],
}  # fmt: skip
HUB = {
    **{key: HOTPOT[key] for key in ("question", "answer", "type", "level")},
    "supporting_facts": {"title": ["Scott", "Ed"], "sent_id": [0, 0]},
    "context": {"title": ["Scott", "Other"], "sentences": [["He is.", " So."], ["No."]]},
}
HOTPOT_METADATA = {key: HUB[key] for key in ("type", "level", "supporting_facts", "context")}
PARAGRAPHS = [{"idx": 0, "title": "A", "paragraph_text": "a", "is_supporting": True}]
MUSIQUE = {"id": "3hop1__1_2_3", "question": "Who?", "answer": "G. Stanley Hall", "answer_aliases": ["Stanley Hall"],
           "answerable": True, "paragraphs": PARAGRAPHS}  # fmt: skip


STRATEGY = {"qid": "e0", "term": "Albany", "question": "Will it?", "answer": False, "facts": ["f"]}
TRIVIA = {"QuestionId": "tc_1", "Question": "Who?", "Answer": {"Value": "Sunset", "Aliases": ["Sunset", "Sunset Blvd"]}}


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


CASES = [
    ("hotpotqa", "x.json", json.dumps([HOTPOT]), Question("5a", "Same nationality?", ("yes",), HOTPOT_METADATA)),
    ("hotpotqa", "x.json", json.dumps([HUB]), Question("dev_0", "Same nationality?", ("yes",), HOTPOT_METADATA)),
    ("2wikimultihopqa", "x.json", json.dumps([HOTPOT]), Question("5a", "Same nationality?", ("yes",), HOTPOT_METADATA)),
    ("musique", "x.jsonl", lines(MUSIQUE, {**MUSIQUE, "id": "2hop__1", "answerable": False}),
     Question("3hop1__1_2_3", "Who?", ("G. Stanley Hall", "Stanley Hall"), {"hops": 3, "paragraphs": PARAGRAPHS})),
    ("bamboogle", "x.csv", 'Question,Answer\n"Who, then?",james madison\n',
     Question("dev_0", "Who, then?", ("james madison",))),
    ("bamboogle", "x.tsv", "Question\tAnswer\nWho?\tTitan IIIE\n", Question("dev_0", "Who?", ("Titan IIIE",))),
    ("strategyqa", "x.json", json.dumps([STRATEGY]),
     Question("e0", "Will it?", ("no",), {"term": "Albany", "facts": ["f"]})),
    ("nq", "x.jsonl", lines({"question": "when", "answer": ["14 December 1972 UTC", "December 1972"]}),
     Question("dev_0", "when", ("14 December 1972 UTC", "December 1972"))),
    ("triviaqa", "x.json",
     json.dumps({"Data": [TRIVIA]}),
     Question("tc_1", "Who?", ("Sunset", "Sunset Blvd"))),
    ("popqa", "x.tsv",
     "id\tsubj\tprop\tobj\tquestion\tpossible_answers\ts_wiki_title\n"
     '42\tGeorge\toccupation\tpolitician\tWhat is George\'s job?\t"[""politician"", ""pol""]"\tGeorge R.\n',
     Question("42", "What is George's job?", ("politician", "pol"),
              {"subj": "George", "prop": "occupation", "obj": "politician", "supporting_titles": ["George R."]})),
]  # fmt: skip


def converted(dataset: str, source: Path, data_dir: Path) -> list[Question]:
    assert main([dataset, str(source), "--split", "dev", "--data_dir", str(data_dir)]) == 0
    return load_questions(DatasetSettings(data_dir=str(data_dir), dataset_name=dataset), "dev")


@pytest.mark.parametrize(("dataset", "name", "content", "question"), CASES, ids=[case[0] for case in CASES])
def test_a_record_of_each_format(dataset: str, name: str, content: str, question: Question, tmp_path: Path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert converted(dataset, tmp_path / name, tmp_path / "data") == [question]


def test_every_data_set_has_a_converter():
    assert METADATA.keys() == DATASETS.keys()


@pytest.mark.parametrize(
    ("dataset", "name", "content", "message"),
    [
        ("hotpotqa", "x.json", '[{"question": "Who?"}]', "x.json record 1: none of reward_model.ground_truth, golden_"),
        (
            "hotpotqa",
            "x.json",
            '[{"question": "Who?", "answer": "A", "context": 5}]',
            "record 1: is no hotpotqa record",
        ),
        ("hotpotqa", "x.json", json.dumps([HOTPOT, HOTPOT]), "record 2: id '5a' is already in record 1"),
        ("musique", "x.json", json.dumps([{**MUSIQUE, "id": "a"}]), "is no musique record (ValueError: "),
        ("strategyqa", "x.json", '[{"question": "Q?", "answer": "yes"}]', "expected true or false"),
        ("nq", "x.jsonl", '{"question": "Q?", "answer": []}\n', "line 1: answer: [] was given"),
        ("nq", "x.jsonl", '{"question": \n', "line 1: is not valid JSON"),
        ("nq", "x.json.gz", "x", "cannot be read (Not a gzipped file"),
        ("musique", "x.json", "[]", "holds no question"),
        ("bamboogle", "x.csv", 'Question,Answer\n"Who?', "x.csv cannot be read: unexpected end of data"),
        ("bamboogle", "none.tsv", "", "holds no question"),
        (
            "popqa",
            "x.tsv",
            "id\tquestion\tpossible_answers\n1\tQ?\tnot json\n",
            "row 1: possible_answers: 'not json' was given",
        ),
    ],
)
def test_what_cannot_be_converted_is_told_and_nothing_is_written(
    dataset: str, name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert main([dataset, str(tmp_path / name), "--split", "dev", "--data_dir", str(tmp_path / "data")]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.jsonl"))


def test_the_unanswerable_twins_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.jsonl").write_text(lines({**MUSIQUE, "answerable": False}, MUSIQUE))
    assert len(converted("musique", tmp_path / "x.jsonl", tmp_path)) == 1
    assert "left out 1 unanswerable questions (2 records in all)" in capsys.readouterr().err


def test_every_column_of_a_table_is_there_for_the_metadata(tmp_path: Path):
    pd.DataFrame([HUB]).to_parquet(tmp_path / "x.parquet")
    (question,) = converted("hotpotqa", tmp_path / "x.parquet", tmp_path)
    assert question == Question("dev_0", "Same nationality?", ("yes",), HOTPOT_METADATA)


def test_check_says_what_would_be_written_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, data_dir = tmp_path / "my fïle.jsonl", tmp_path / "dâta"
    source.write_text(lines({**MUSIQUE, "answerable": False}, MUSIQUE))
    arguments = ["musique", str(source), "--split", "dev", "--data_dir", str(data_dir)]
    assert main([*arguments, "--check"]) == 0
    captured = capsys.readouterr()
    assert f"{source}: 1 questions of 2 records; left out: 1 unanswerable questions" in captured.out
    assert f"{data_dir}/musique/dev.jsonl: 1 lines" in captured.out
    assert f"python scripts/convert_data.py musique '{source}' --split dev --data_dir '{data_dir}'\n" in captured.out
    assert "note: " in captured.out
    assert "has 1 questions; FlashRAG's dev split has 2417 [data.source]" in captured.out
    assert not data_dir.exists()
    assert main(arguments) == 0
    first = next(line for line in captured.out.splitlines() if line.startswith("  first line"))
    assert first.endswith((data_dir / "musique" / "dev.jsonl").read_text().rstrip())
    source.write_text("{")
    assert main([*arguments, "--check"]) == 2
    printed = capsys.readouterr().out
    assert "exists already" in printed
    assert "is not valid JSON" in printed
    assert "2 errors: this would not start" in printed


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.json").write_text(json.dumps([HOTPOT]))
    arguments = ["hotpotqa", str(tmp_path / "x.json"), "--split", "dev", "--data_dir", str(tmp_path)]
    assert main(arguments) == 0
    assert "1 questions" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


ORIGINALS = Path(__file__).resolve().parents[3] / "shared" / "data" / "original"
REAL = [
    ("hotpotqa", "hotpot_train_v1.1.sample100.json", 100, 100),
    ("hotpotqa", "hotpot_dev_distractor_v1.sample.json", 100, 100),
    ("musique", "musique_train.sample100.json", 100, 100),
    ("bamboogle", "bamboogle.json", 125, 0),
    ("strategyqa", "strategyqa_dev.json", 229, 0),
    ("nq", "NQ-open.dev.jsonl", 3610, 0),
]


@pytest.mark.parametrize(("dataset", "name", "n_questions", "n_with_support"), REAL)
def test_the_real_files(dataset: str, name: str, n_questions: int, n_with_support: int, tmp_path: Path):
    packed = ORIGINALS / f"{name}.xz"
    if not packed.exists():
        pytest.skip(f"{packed} is not at hand")
    questions = converted(dataset, packed, tmp_path / "data")
    assert len(questions) == n_questions
    assert sum(supporting_documents(question.metadata) is not None for question in questions) == n_with_support
    assert all(answer.strip() for question in questions for answer in question.golden_answers)
