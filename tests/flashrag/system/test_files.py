"""What a killed writer leaves behind, and what a writer at work may expect (the rest is in test_corpus.py)."""

import subprocess
import sys

import pytest

from flashrag.system.files import locked, recover, staged

WRITE_HALF_AND_WAIT = """
import pathlib, signal, sys
from flashrag.system.files import staged
with staged(pathlib.Path(sys.argv[1])) as place:
    place.write_text("half")
    print("half written", flush=True)
    signal.pause()
"""


@pytest.fixture
def writer(tmp_path):
    """A process that stands in the middle of writing `tmp_path/a[1]`."""
    command = [sys.executable, "-c", WRITE_HALF_AND_WAIT, str(tmp_path / "a[1]")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half written\n"
        yield process
        process.kill()


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path, writer):
    writer.kill()
    writer.wait()
    assert len(list(tmp_path.iterdir())) == 1  # the half, hidden
    with staged(tmp_path / "a[1]") as place:
        place.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a[1]"]


def test_a_writer_at_work_is_left_alone(tmp_path, writer):
    with staged(tmp_path / "a[1]") as place:
        place.write_text("whole")
    assert writer.poll() is None
    (half,) = (path for path in tmp_path.iterdir() if path.name != "a[1]")
    assert (half / "a[1]").read_text() == "half"


def test_a_folder_is_held_by_one_at_a_time_and_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path) as held:
        assert held
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        1 / 0  # noqa: B018
    with locked(tmp_path) as held:
        assert held


@pytest.fixture
def model(tmp_path):
    """A folder that a writer is about to replace."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    return tmp_path / "model"


def test_a_folder_whose_writer_was_killed_between_the_two_renames_comes_back(tmp_path, model):
    holder = tmp_path / ".model.abc.tmp"
    holder.mkdir()
    model.rename(holder / "replaced")  # as `staged` does before it puts the new folder there
    recover(model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (model / "weights").read_text() == "old"


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, model, monkeypatch):
    def refuse(self, target):
        raise OSError(f"{self} cannot become {target}")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="cannot become"), staged(model) as new:
        new.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (model / "weights").read_text() == "old"
