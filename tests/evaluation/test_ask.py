"""ask.py from its command line, on a model whose every token is known."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.ask import main
from flashrag.episode import Trajectory

QUESTION = "Who was the first king of Zhou?"


@pytest.fixture
def servers(small_servers: Any, tmp_path: Path) -> list[str]:
    """The flags of both servers, and of the folder."""
    flags = {**small_servers.flags, "save_dir": str(tmp_path / "asked")}
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def kept(tmp_path: Path) -> list[Trajectory]:
    lines = (tmp_path / "asked" / "trajectories.jsonl").read_bytes().splitlines()
    return [Trajectory.from_json(line) for line in lines]


def test_an_answer_comes_step_by_step(servers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([QUESTION, *servers]) == 0
    printed = capsys.readouterr().out
    print(printed)
    assert 0
