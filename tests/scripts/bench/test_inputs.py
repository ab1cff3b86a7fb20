"""The inputs of benchmarks: different questions, each given once, and the model that was written last."""

import itertools
import json
import lzma
import os
from pathlib import Path

import pytest

from flashrag.errors import UserError
from scripts.bench.inputs import DemoOptions, question_supply, read_unique_questions


def lines(*questions: str) -> str:
    return "".join(json.dumps({"question": question}) + "\n" for question in questions)


def test_files_are_merged_and_repetitions_dropped(tmp_path):
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.xz"
    plain.write_text(lines("one", "two", "one"), encoding="utf-8")
    packed.write_bytes(lzma.compress(lines("two", "drei €").encode()))
    questions = read_unique_questions([plain, packed], seed=1)
    assert sorted(questions) == ["drei €", "one", "two"]
    assert questions == read_unique_questions([plain, packed], seed=1)


def test_no_question_is_handed_out_twice():
    assert list(itertools.islice(question_supply(["a", "b"]), 5)) == ["a", "b", "[2] a", "[2] b", "[3] a"]


@pytest.mark.parametrize("text", ["no json\n", "[]\n", '{"query": "x"}\n'])
def test_a_bad_line_is_named(tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines("fine") + text)
    with pytest.raises(UserError, match=r"bad\.jsonl line 2"):
        read_unique_questions([path], seed=1)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read_unique_questions([tmp_path / "none.jsonl"], seed=1)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no question"):
        read_unique_questions([tmp_path / "empty.jsonl"], seed=1)


def test_a_demo_with_too_few_questions_is_refused(tmp_path: Path):
    folder = tmp_path / "data" / "demo"
    folder.mkdir(parents=True)
    line = json.dumps({"id": "a", "question": "?", "golden_answers": ["x"]}) + "\n"
    (folder / "dev.jsonl").write_text(line)
    (folder / "train.jsonl").write_text(line.replace('"a"', '"b"'))
    demo = DemoOptions(demo_dir=tmp_path)
    assert [question.id for question in demo.first_questions(2)] == ["a", "b"]
    with pytest.raises(UserError, match="holds 2; give fewer"):
        demo.first_questions(3)


def test_the_model_written_last_is_measured(tmp_path: Path):
    with pytest.raises(UserError, match="no trained model"):
        _ = DemoOptions(demo_dir=tmp_path).model
    for step, age_s in ((9, 0), (20, 100)):
        model = tmp_path / "training" / f"global_step_{step}" / "actor" / "huggingface"
        model.mkdir(parents=True)
        os.utime(model, (1e9 - age_s, 1e9 - age_s))
    assert DemoOptions(demo_dir=tmp_path).model.parts[-3] == "global_step_9"
    assert DemoOptions(demo_dir=tmp_path, model_path=Path("given")).model == Path("given")
