"""What benchmarks take from the demo's folder: the questions, and the model that was written last."""

import json
import os
from pathlib import Path

import pytest

from flashrag.errors import UserError
from scripts.bench.demo import demo_questions, trained_model


def test_a_demo_with_too_few_questions_is_refused(tmp_path: Path):
    folder = tmp_path / "data" / "demo"
    folder.mkdir(parents=True)
    line = json.dumps({"id": "a", "question": "?", "golden_answers": ["x"]}) + "\n"
    (folder / "dev.jsonl").write_text(line)
    (folder / "train.jsonl").write_text(line.replace('"a"', '"b"'))
    assert [question.id for question in demo_questions(tmp_path, 2)] == ["a", "b"]
    with pytest.raises(UserError, match="holds 2; give fewer"):
        demo_questions(tmp_path, 3)


def test_the_model_written_last_is_measured(tmp_path: Path):
    with pytest.raises(UserError, match="no trained model"):
        trained_model(tmp_path)
    for step, age_s in ((9, 0), (20, 100)):
        model = tmp_path / "training" / f"global_step_{step}" / "actor" / "huggingface"
        model.mkdir(parents=True)
        os.utime(model, (1e9 - age_s, 1e9 - age_s))
    assert trained_model(tmp_path).parts[-3] == "global_step_9"
