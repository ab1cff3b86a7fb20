"""How a trainer that ended is reported: its own last word, whatever its processes and earlier trainers wrote."""

from pathlib import Path

from training.trainer_process import error_line


def reported(folder: Path, log: str) -> str:
    """What is made of a trainer's log that stands behind an earlier one's."""
    earlier = "error: of an earlier run\n"
    (folder / "train.log").write_text(earlier + log)
    return error_line(folder / "train.log", len(earlier))


def test_the_error_is_found_under_all_that_other_processes_say_after_it(tmp_path: Path) -> None:
    own = "Traceback (most recent call last):\nerror: the server is gone. To go on: ...\n"
    others = "(SearchTaskRunner pid=1) ConnectionResetError: Connection lost\n" * 5_000
    assert reported(tmp_path, own + others) == "the server is gone. To go on: ..."


def test_a_trainer_that_said_nothing_is_not_given_the_words_of_an_earlier_one(tmp_path: Path) -> None:
    assert reported(tmp_path, "Segmentation fault\n") == "Segmentation fault"
