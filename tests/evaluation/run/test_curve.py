"""The checkpoints of a training run, each as an evaluation of its own."""

import json
import shutil
from pathlib import Path

import pytest

import evaluation.run_eval
from evaluation.command_line import CommandLine, parse_command_line
from evaluation.run.curve import checkpoints, command_lines
from evaluation.run_eval import main
from flashrag.errors import UserError

from .test_auto_serve import BASE_MODEL, arguments


def write_checkpoints(run: Path, *steps: int) -> Path:
    for step in steps:
        actor = run / f"global_step_{step}" / "actor"
        shutil.copytree(BASE_MODEL, actor / "huggingface")
        (actor / "fsdp_config.json").write_text(json.dumps({"world_size": 8}))
    (run / "latest_checkpointed_iteration.txt").write_text(str(max(steps)))
    return run


def test_the_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path):
    write_checkpoints(tmp_path / "run", 100, 20, 3)
    (tmp_path / "run" / "global_step_7").mkdir()  # verl keeps the folder of a checkpoint that it removed
    assert list(checkpoints(tmp_path / "run")) == [3, 20, 100]
    with pytest.raises(UserError, match="holds no finished global_step_N; expected the folder of a training run"):
        checkpoints(tmp_path)


def test_a_checkpoint_after_the_last_noted_one_is_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = write_checkpoints(tmp_path / "run", 3, 20)
    (run / "global_step_40" / "actor").mkdir(parents=True)  # the trainer has not noted it yet
    assert list(checkpoints(run)) == [3, 20]
    assert capsys.readouterr().out.startswith(f"left out: {run / 'global_step_40'}, because step 20 is the last one")
    (run / "latest_checkpointed_iteration.txt").unlink()  # of checkpoints that were copied without it nothing is known
    with pytest.raises(UserError, match="global_step_40"):
        checkpoints(run)


def test_each_has_a_run_of_its_own(data_dir: Path, tmp_path: Path):
    run = write_checkpoints(tmp_path / "run", 20, 3)
    given = arguments(data_dir, tmp_path, "--auto_serve", str(run))
    lines = command_lines(parse_command_line(given))
    assert [(line.auto_serve, line.overrides["save_note"]) for line in lines] == [
        (run / "global_step_3", "step_3"),
        (run / "global_step_20", "step_20"),
    ]
    noted = command_lines(parse_command_line([*given, "--save_note", "seed_1"]))
    assert [line.overrides["save_note"] for line in noted] == ["seed_1_step_3", "seed_1_step_20"]
    with pytest.raises(UserError, match="give its folder with --auto_serve"):
        command_lines(parse_command_line(arguments(data_dir, tmp_path)))


def test_nothing_starts_unless_all_can(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = write_checkpoints(tmp_path / "run", 20, 3)
    (run / "global_step_20" / "actor" / "huggingface" / "config.json").write_text("{}")
    monkeypatch.setattr(evaluation.run_eval, "evaluate", lambda _: pytest.fail("started"))
    assert main(["curve", *arguments(data_dir, tmp_path, "--auto_serve", str(run))]) == 2
    assert "global_step_20" in capsys.readouterr().err


def test_the_checked_command_is_the_whole_one(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_checkpoints(tmp_path / "run", 20, 3)
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(evaluation.run_eval, "evaluate", lambda line: seen.append(line.arguments) or 0)
    command = ["curve", *arguments(data_dir, tmp_path, "--auto_serve", str(run), "--check")]
    assert main(command) == 0
    assert seen == [tuple(command)] * 2


def test_the_curve_is_told_at_the_end_and_stops_where_it_is_interrupted(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = write_checkpoints(tmp_path / "run", 20, 3)
    codes = {3: 0, 20: 0}

    def evaluate(line: CommandLine) -> int:
        assert line.auto_serve is not None
        step = int(line.auto_serve.name.rpartition("_")[2])
        folder = tmp_path / f"kings_dev_zero-shot_step_{step}"
        folder.mkdir(exist_ok=True)
        em = {"mean": step / 100, "low": None, "high": None, "n": 3}
        summary = {"method": "zero-shot", "dataset": "kings", "save_note": f"step_{step}", "metrics": {"em": em}}
        (folder / "summary.json").write_text(json.dumps({**summary, "n": 3, "n_failed": 0, "usage": {"searches": 0.0}}))
        return codes[step]

    monkeypatch.setattr(evaluation.run_eval, "evaluate", evaluate)
    monkeypatch.setattr(evaluation.run_eval, "look", lambda _: (None, []))
    command = ["curve", *arguments(data_dir, tmp_path, "--auto_serve", str(run))]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "| kings zero-shot | 3 | 3 | 3.00 | 0 |\n| kings zero-shot | 20 | 3 | 20.00 | 0 |" in out
    folders = f"{tmp_path}/kings_dev_zero-shot_step_3 {tmp_path}/kings_dev_zero-shot_step_20"
    assert f"with a plot: python evaluation/run_eval.py report {folders}" in out
    codes[3] = 130
    assert main(command) == 130
    assert "global_step_20" not in capsys.readouterr().out
    codes[3] = 1
    assert main(command) == 1
    assert "global_step_20" in capsys.readouterr().out
