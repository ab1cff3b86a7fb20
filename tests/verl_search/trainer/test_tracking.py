"""The run's loggers: upstream's own, on places that cannot be written, and wandb without a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from omegaconf import OmegaConf

from tests.proxies import clear_proxies
from verl_search.trainer.stopping import NOTICE
from verl_search.trainer.tracking import OptionalTracking


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    clear_proxies(monkeypatch)
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "tensorboard"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")  # an undone change, because a fall-back sets it
    yield
    wandb.teardown()


def logged(tmp_path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_every_logger_that_works_gets_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = OmegaConf.create(["console", "file", "tensorboard"])
    tracking = OptionalTracking("project", "run", names, {})
    tracking.log({"reward": 0.5}, step=1)
    tracking.finish()
    assert list(tracking.logger) == list(names) == ["console", "file", "tensorboard"]
    assert logged(tmp_path) == [1]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert NOTICE not in capsys.readouterr().out


def test_a_tensorboard_folder_that_cannot_be_written_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "tensorboard").write_text("a file stands where the folder should be")
    names = OmegaConf.create(["file", "tensorboard"])
    tracking = OptionalTracking("project", "run", names, {})
    for step in (1, 2):
        tracking.log({"reward": 0.5}, step)
    tracking.finish()
    assert logged(tmp_path) == [1, 2]
    assert names == ["file"]  # nobody else tries to log to it
    out = capsys.readouterr().out
    assert out.count(f"{NOTICE}the logger tensorboard is left out: FileExistsError") == 1


def test_a_logger_that_fails_later_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tracking = OptionalTracking("project", "run", ["file", "tensorboard"], {})
    tracking.log({"reward": 0.5}, step=1)
    tracking.log({"reward": "no number"}, step=2)  # TensorBoard refuses it
    tracking.log({"reward": 0.5}, step=3)
    tracking.finish()
    assert logged(tmp_path) == [1, 2, 3]
    assert capsys.readouterr().out.count("the logger tensorboard is left out from step 2 on") == 1


def test_the_file_is_indispensable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path))
    with pytest.raises(OSError, match="Is a directory"):
        OptionalTracking("project", "run", ["file"], {})


@pytest.mark.slow
def test_wandb_goes_on_offline_when_its_server_is_gone(
    tmp_path: Path, closed_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", closed_url)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    tracking = OptionalTracking("project", "run", ["file", "wandb"], {})
    tracking.log({"reward": 0.5}, step=1)
    tracking.finish()
    assert logged(tmp_path) == [1]
    assert f"{NOTICE}wandb works offline: CommError" in capsys.readouterr().out
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1
