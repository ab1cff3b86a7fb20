import json
import os
from pathlib import Path

import pytest

from flashrag.errors import UserError
from scripts.bench.evaluation import Pass, demo_questions, main, report, trained_model


def test_the_figures_are_medians_and_their_ratios(capsys):
    figures = report(
        {
            "ours": [Pass(10.0, 500, 0), Pass(20.0, 500, 1), Pass(12.5, 500, 0)],  # 50, 25 and 40 a second
            "sequential": [Pass(15.0, 60, 0)],  # 4 a second
            "limit": [Pass(10.0, 500, 0)],  # 50 a second
        }
    )
    assert figures == {
        "ours_over_sequential": 10.0,
        "ours_over_limit": 0.8,
        "ours_per_s": 40.0,
        "sequential_per_s": 4.0,
        "limit_per_s": 50.0,
        "failed": 1,
    }
    assert "sequential" in capsys.readouterr().out


def test_a_demo_with_too_few_questions_is_refused(tmp_path: Path):
    folder = tmp_path / "data" / "demo"
    folder.mkdir(parents=True)
    line = json.dumps({"id": "a", "question": "?", "golden_answers": ["x"]}) + "\n"
    (folder / "dev.jsonl").write_text(line)
    (folder / "train.jsonl").write_text(line.replace('"a"', '"b"'))
    assert [question.id for question in demo_questions(tmp_path, 2)] == ["a", "b"]
    with pytest.raises(UserError, match="holds 2; give fewer"):
        demo_questions(tmp_path, 3)


def test_a_folder_without_a_demo_is_refused(tmp_path: Path, capsys):
    assert main(["--demo_dir", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_model_written_last_is_measured(tmp_path: Path):
    with pytest.raises(UserError, match="no trained model"):
        trained_model(tmp_path)
    for step, age_s in ((9, 0), (20, 100)):
        model = tmp_path / "training" / f"global_step_{step}" / "actor" / "huggingface"
        model.mkdir(parents=True)
        os.utime(model, (1e9 - age_s, 1e9 - age_s))
    assert trained_model(tmp_path).parts[-3] == "global_step_9"
