"""How a trainer that ended is reported: its own last word, whatever its processes and earlier trainers wrote."""

from pathlib import Path

from training.trainer_process import error_line


def test_the_error_is_found_under_all_that_other_processes_say_after_it(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("error: of an earlier run\n")
    began = log.stat().st_size
    with log.open("a") as more:
        more.write("Traceback (most recent call last):\nerror: the server is gone. To go on: ...\n")
        more.write("(SearchTaskRunner pid=1) ConnectionResetError: Connection lost\n" * 5_000)
    assert error_line(log, began) == "the server is gone. To go on: ..."


def test_a_trainer_that_said_nothing_is_not_given_the_words_of_an_earlier_one(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("error: of an earlier run\n")
    began = log.stat().st_size
    with log.open("a") as more:
        more.write("Segmentation fault\n")
    assert error_line(log, began) == "Segmentation fault"
