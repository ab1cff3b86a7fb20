"""How a trainer that ended is reported: by its own note, or by its own part of the log."""

from pathlib import Path

import pytest

from flashrag.errors import ReSearchError, UserError
from training.trainer_process import raise_end
from verl_search.trainer.run_folder import forget_end, write_end
from verl_search.trainer.stopping import StopTraining, TrainingFailed

EARLIER = "error: of an earlier run\n"


def report(folder: Path, log: str, end: ReSearchError | None = None) -> str:
    """The error that is raised for a trainer whose log stands behind an earlier one's; its text without the paths."""
    (folder / "train.log").write_text(EARLIER + log)
    if end is not None:
        write_end(folder, end)
    with pytest.raises(ReSearchError) as raised:
        raise_end(folder, folder / "train.log", len(EARLIER), returncode=1)
    assert raised.type is (TrainingFailed if end is None else type(end))
    return str(raised.value)


def test_the_reason_is_the_trainers_own_whatever_the_log_says(tmp_path: Path) -> None:
    others = "(SearchTaskRunner pid=1) error: Connection lost\n" * 5_000
    stopped = report(tmp_path, others, StopTraining("the server is gone"))
    assert stopped == f"the server is gone\nThe trainer's log is {tmp_path / 'train.log'}."
    assert report(tmp_path, others, UserError("no such file")) == "no such file"
    failed = report(tmp_path, others, TrainingFailed("OSError: x"))
    assert failed.startswith("the trainer ended with exit code 1: OSError: x\n    (SearchTaskRunner pid=1) error: ")


def test_a_trainer_that_left_no_note_is_reported_by_its_own_part_of_the_log(tmp_path: Path) -> None:
    write_end(tmp_path, StopTraining("of an earlier run"))
    forget_end(tmp_path)
    assert report(tmp_path, "Segmentation fault\n").splitlines() == [
        "the trainer ended with exit code 1",
        "    Segmentation fault",
        "No checkpoint was saved: the same command starts from the beginning.",
        f"The whole log: {tmp_path / 'train.log'}",
    ]


def test_memory_that_ran_out_is_told_with_either_end(tmp_path: Path) -> None:
    # As Ray 2.60 printed it beside an evaluation that took the rest of the memory.
    killed = (
        "(raylet) [2026-11-27 19:26:18,909 E 7 7] 4 Workers (tasks / actors) killed due to memory pressure (OOM), 0"
    )
    ended = "Ray ended 4 processes, because the machine's memory was nearly full: "
    stopped = report(tmp_path, f"{killed}\n", StopTraining("the engine is dead"))
    assert [line.startswith(ended) for line in stopped.splitlines()] == [False, True, False]
    assert report(tmp_path, f"{killed}\n", TrainingFailed("OSError: x")).count(ended) == 1


def test_a_note_needs_a_folder(tmp_path: Path) -> None:
    write_end(tmp_path / "missing", StopTraining("why"))
    assert list(tmp_path.iterdir()) == []
