"""The best checkpoint outlives the rotation of the others."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from verl_search.trainer.checkpoints import BestCheckpoint, best_checkpoint_path, keep_if_best, read_best_checkpoint


def checkpoint(save_path: Path, step: int, score: float, metric: str = "validation EM") -> BestCheckpoint:
    """What verl writes at a step, with the weights as text."""
    folder = save_path / f"global_step_{step}"
    (folder / "actor" / "huggingface").mkdir(parents=True)
    (folder / "actor" / "model.pt").write_text(f"weights of step {step}")
    (folder / "actor" / "huggingface" / "config.json").write_text("{}")
    (folder / "data.pt").write_text("data")
    return BestCheckpoint(step, metric, score)


def test_the_best_stays_when_it_is_rotated_away(tmp_path: Path) -> None:
    assert read_best_checkpoint(tmp_path) is None
    for step, score in ((10, 0.3), (20, 0.5), (30, 0.1)):
        best = keep_if_best(tmp_path, checkpoint(tmp_path, step, score))
        shutil.rmtree(tmp_path / f"global_step_{step}")  # verl's rotation
    assert best == read_best_checkpoint(tmp_path) == BestCheckpoint(20, "validation EM", 0.5)
    kept = best_checkpoint_path(tmp_path, best)
    assert kept == tmp_path / "best_checkpoint" / "global_step_20"
    assert (kept / "actor" / "model.pt").read_text() == "weights of step 20"
    assert (kept / "actor" / "huggingface" / "config.json").is_file()
    assert sorted(path.name for path in kept.parent.iterdir()) == ["global_step_20", "score.json"]


def test_it_takes_no_room_while_the_checkpoint_is_there(tmp_path: Path) -> None:
    best = keep_if_best(tmp_path, checkpoint(tmp_path, 10, 0.3))
    source = tmp_path / "global_step_10" / "actor" / "model.pt"
    assert best_checkpoint_path(tmp_path, best).joinpath("actor", "model.pt").samefile(source)


def test_of_equals_the_later_is_kept(tmp_path: Path) -> None:
    keep_if_best(tmp_path, checkpoint(tmp_path, 10, 0.3))
    assert keep_if_best(tmp_path, checkpoint(tmp_path, 20, 0.3)).step == 20


def test_scores_of_different_metrics_are_not_compared(tmp_path: Path) -> None:
    keep_if_best(tmp_path, checkpoint(tmp_path, 10, 0.9, "training EM"))
    assert keep_if_best(tmp_path, checkpoint(tmp_path, 20, 0.3)).step == 20


def test_what_a_crash_left_is_no_checkpoint(tmp_path: Path) -> None:
    keep_if_best(tmp_path, checkpoint(tmp_path, 10, 0.3))
    (tmp_path / "best_checkpoint" / ".global_step_15.x.tmp" / "global_step_15" / "actor").mkdir(parents=True)
    assert read_best_checkpoint(tmp_path) == BestCheckpoint(10, "validation EM", 0.3)
    keep_if_best(tmp_path, checkpoint(tmp_path, 20, 0.4))
    assert sorted(path.name for path in (tmp_path / "best_checkpoint").iterdir()) == ["global_step_20", "score.json"]
    shutil.rmtree(tmp_path / "best_checkpoint" / "global_step_20")
    assert read_best_checkpoint(tmp_path) is None


def test_a_step_that_is_saved_again_never_leaves_the_run_without_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = keep_if_best(tmp_path, checkpoint(tmp_path, 10, 0.3))
    kept = best_checkpoint_path(tmp_path, best) / "actor" / "model.pt"
    shutil.rmtree(tmp_path / "global_step_10")
    again = checkpoint(tmp_path, 10, 0.4)  # a resumed run trains the step once more

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copytree", interrupted)
        keep_if_best(tmp_path, again)
    assert read_best_checkpoint(tmp_path) == best
    assert kept.read_text() == "weights of step 10"

    assert keep_if_best(tmp_path, again) == read_best_checkpoint(tmp_path) == again
    assert kept.samefile(tmp_path / "global_step_10" / "actor" / "model.pt")
