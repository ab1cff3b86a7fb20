"""What scripts/setup.sh refuses, in one line each, and that it leaves nothing half made. No network is used."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "scripts/setup.sh",
    "scripts/environment.py",
    "requirements.txt",
    "requirements-cpu.txt",
    "flashrag/pyproject.toml",
    "verl/pyproject.toml",
]
TOOLS = ["awk", "basename", "bash", "cat", "cut", "df", "dirname", "flock", "grep", "mv", "rm", "sha256sum", "timeout"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the script reads, in a folder whose name has a space."""
    folder = tmp_path / "check out"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def path_folder(tmp_path: Path) -> Path:
    """The only folder on PATH: basic tools, and no Python until a test adds one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def environment(path_folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": str(path_folder), "HOME": str(path_folder.parent), **more}


def setup(checkout: Path, variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "scripts" / "setup.sh"), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devise", "cpu"], "unknown argument '--devise'; see scripts/setup.sh --help"),
        (["--device"], "--device needs a value; see scripts/setup.sh --help"),
        (["--device", "tpu"], "device is 'tpu', expected cpu or gpu (--device, RESEARCH_DEVICE)"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, checkout: Path, path_folder: Path) -> None:
    done = setup(checkout, environment(path_folder), *arguments)
    assert (done.returncode, done.stderr) == (2, f"set-up: error: {message}\n")


def test_help_needs_nothing(checkout: Path, path_folder: Path) -> None:
    done = setup(checkout, environment(path_folder), "--help")
    assert done.returncode == 0
    assert "--device" in done.stdout


def test_wrong_pythons_are_named(checkout: Path, path_folder: Path) -> None:
    executable(path_folder / "python3.11", 'case "$*" in *ensurepip*) exit 1;; *) echo 3.11.2;; esac')
    executable(path_folder / "python3.12", "echo 'no such version is active' >&2; exit 127")
    executable(path_folder / "python3", 'case "$*" in *ensurepip*) echo;; *) echo 3.9.18;; esac')
    done = setup(checkout, environment(path_folder, RESEARCH_MIN_DISK_GB="0"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "set-up: error: no usable Python 3.11 or 3.12; found: python3.11 (3.11.2 without venv and ensurepip), "
        "python3.12 (does not run), python3 (3.9.18). Install one with its venv module, or name it: --python PATH"
    )
    assert not (checkout / ".venv").exists()


def test_no_python_at_all(checkout: Path, path_folder: Path) -> None:
    done = setup(checkout, environment(path_folder, RESEARCH_MIN_DISK_GB="0"), "--python", "/no/python")
    assert done.returncode == 2
    assert "no usable Python 3.11 or 3.12; found: none" in done.stderr


def test_full_disk_is_refused_before_anything_is_made(checkout: Path, path_folder: Path) -> None:
    done = setup(checkout, environment(path_folder, RESEARCH_MIN_DISK_GB="999999"), "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.startswith(f"set-up: error: {checkout} has ")
    assert "GB free, the cpu stack needs about 999999 GB" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("made_for", "asked", "expected"),
    [(None, None, "gpu"), ("cpu", None, "cpu"), (None, "cpu", "cpu"), ("cpu", "gpu", "gpu")],
)
def test_device_is_what_was_asked_else_made_for_else_found(
    made_for: str | None, asked: str | None, expected: str, checkout: Path, path_folder: Path
) -> None:
    executable(path_folder / "nvidia-smi", "echo 'GPU 0: NVIDIA H100'")
    if made_for:
        (checkout / ".venv").mkdir()
        (checkout / ".venv" / "research-device").write_text(made_for)
        (checkout / ".venv" / "research-stamp").write_text("finished once")
    variables = environment(path_folder, RESEARCH_MIN_DISK_GB="999999", **({"RESEARCH_DEVICE": asked} if asked else {}))
    assert f"the {expected} stack needs" in setup(checkout, variables).stderr


def test_second_set_up_waits_for_the_first(checkout: Path, path_folder: Path) -> None:
    variables = environment(path_folder, RESEARCH_MIN_DISK_GB="999999")
    held = os.open(checkout, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    command = [str(checkout / "scripts" / "setup.sh")]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "set-up: another set-up is running here; waiting for it\n"
        assert second.poll() is None
        os.close(held)  # releases the lock
        assert second.wait(timeout=30) == 2


@pytest.mark.slow
def test_unreachable_index_is_reported_soon_and_the_next_run_repairs(checkout: Path, path_folder: Path) -> None:
    (path_folder / "python3").symlink_to(getattr(sys, "_base_executable", sys.executable))
    variables = environment(
        path_folder,
        RESEARCH_MIN_DISK_GB="0",
        RESEARCH_DEVICE="cpu",
        PIP_CONFIG_FILE="/dev/null",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",  # the discard port: nothing listens, the connection is refused
    )
    start_s = time.monotonic()
    first = setup(checkout, variables)
    assert time.monotonic() - start_s < 60
    assert first.returncode == 2
    assert "set-up: error: the package index cannot be reached, or lacks uv" in first.stderr.splitlines()[-1]
    assert not (checkout / ".venv" / "research-stamp").exists()
    second = setup(checkout, variables)
    assert ".venv is incomplete or for another device: making a new one" in second.stdout
