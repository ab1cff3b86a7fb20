"""Facts about the machine, each from a real program or a small stand-in for one that is not here."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from flashrag.system.machine import count_gpus, describe_environment, gpu_memory_bytes, library_versions


def test_versions_name_what_is_installed() -> None:
    assert library_versions(("numpy", "no-such-distribution")) == {"numpy": version("numpy")}


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: a)'; echo '  MIG 1g.10gb'; echo 'GPU 1: NVIDIA H100 (UUID: b)'", 2),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9", 0),
        (None, 0),
    ],
    ids=["two GPUs", "no driver", "no program"],
)
def test_gpus_are_counted(script: str | None, gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus() == gpus


def test_the_memory_of_each_gpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory_bytes() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 81559\necho '[N/A]'\necho 40960\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpu_memory_bytes() == [81559 * 2**20, 40960 * 2**20]


def test_a_checkout_is_described_by_its_revision_and_whether_it_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert describe_environment(tmp_path, ())["git"] is None
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "first")
    revision = git("rev-parse", "HEAD")
    assert describe_environment(tmp_path, ())["git"] == {"revision": revision, "dirty": False}
    (tmp_path / "another").write_text("not tracked")
    assert describe_environment(tmp_path, ())["git"] == {"revision": revision, "dirty": False}
    (tmp_path / "file").write_text("b")
    assert describe_environment(tmp_path, ())["git"] == {"revision": revision, "dirty": True}
