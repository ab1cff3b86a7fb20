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
    "requirements-sglang-cpu.txt",
    "requirements-sglang.txt",
    "scripts/sglang_cpu/pyproject.toml",
    "flashrag/pyproject.toml",
    "verl/pyproject.toml",
]
TOOLS = [
    *("awk", "basename", "bash", "cat", "cut", "df", "dirname", "flock", "grep", "ls", "mkdir", "mv", "rm", "rmdir"),
    *("sha256sum", "timeout"),
]


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
    return subprocess.run(
        command, env=variables, cwd=checkout, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devise", "cpu"], "unknown argument '--devise'; see scripts/setup.sh --help"),
        (["--device"], "--device needs a value; see scripts/setup.sh --help"),
        (["--device", "tpu"], "device is 'tpu', expected cpu or gpu (--device, RESEARCH_DEVICE)"),
        (["--venv", ""], "--venv needs a value; see scripts/setup.sh --help"),
        (
            ["--sglang", "--device", "cpu", "--retrieval"],
            "--sglang and --retrieval were both given; each has an environment of its own: run them in turn",
        ),
        (
            ["--retrieval", "--device", "cpu"],
            "--retrieval is for GPUs, and the device is cpu; scripts/setup.sh --device cpu installs faiss for CPUs",
        ),
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


def test_sglang_for_cpu_takes_python_3_11_alone(checkout: Path, path_folder: Path) -> None:
    executable(path_folder / "python3.12", 'case "$*" in *ensurepip*) echo;; *) echo 3.12.4;; esac')
    executable(path_folder / "python3.11", 'case "$*" in *ensurepip*) exit 1;; *) echo 3.11.2;; esac')
    done = setup(checkout, environment(path_folder, RESEARCH_MIN_DISK_GB="0"), "--sglang", "--device", "cpu")
    assert (
        "no usable Python 3.11; found: python3.11 (3.11.2 without venv and ensurepip), python3.12 (3.12.4)."
        in done.stderr
    )
    assert not (checkout / ".venv-sglang").exists()


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


def locked(folder: Path) -> int:
    """Make a folder and hold it as a set-up does, until the descriptor is closed."""
    folder.mkdir()
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def test_second_set_up_waits_for_the_first(checkout: Path, path_folder: Path) -> None:
    variables = environment(path_folder, RESEARCH_MIN_DISK_GB="999999")
    held = locked(checkout / ".venv")
    command = [str(checkout / "scripts" / "setup.sh")]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "set-up: another set-up is running in .venv; waiting for it\n"
        assert second.poll() is None
        os.close(held)  # releases the lock
        assert second.wait(timeout=30) == 2


def test_another_folder_is_not_waited_for(checkout: Path, path_folder: Path) -> None:
    held = locked(checkout / ".venv")
    variables = environment(path_folder, RESEARCH_MIN_DISK_GB="999999")
    done = setup(checkout, variables, "--device", "cpu", "--sglang")
    os.close(held)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the cpu stack needs about 999999 GB" in done.stderr


def test_waiting_set_up_goes_on_in_the_folder_that_the_first_removed(checkout: Path, path_folder: Path) -> None:
    variables = environment(path_folder, RESEARCH_MIN_DISK_GB="999999")
    held = locked(checkout / ".venv")
    command = [str(checkout / "scripts" / "setup.sh")]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        second.stdout.readline()
        (checkout / ".venv").rmdir()
        (checkout / ".venv").mkdir()
        third = os.open(checkout / ".venv", os.O_RDONLY)
        fcntl.flock(third, fcntl.LOCK_EX)
        os.close(held)
        assert second.stdout.readline() == "set-up: another set-up is running in .venv; waiting for it\n"
        os.close(third)
        assert second.wait(timeout=30) == 2


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        (
            {"notes.txt": "mine"},
            [],
            "{folder} holds other files than a Python environment; give a new folder: --venv DIR",
        ),
        (
            {"research-device": "gpu\n"},
            ["--sglang"],
            "mine holds the training stack; give another folder for sglang: --venv DIR",
        ),
        (
            {"research-device": "cpu sglang\n"},
            [],
            "mine holds the sglang stack; give another folder for training: --venv DIR",
        ),
    ],
)
def test_a_folder_that_holds_something_else_is_left_alone(
    files: dict[str, str], arguments: list[str], message: str, checkout: Path, path_folder: Path
) -> None:
    folder = checkout / "mine"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    variables = environment(path_folder, RESEARCH_MIN_DISK_GB="0")
    done = setup(checkout, variables, "--device", "cpu", "--venv", f"{folder}/", *arguments)
    assert (done.returncode, done.stderr) == (2, f"set-up: error: {message.format(folder=folder)}\n")
    assert {path.name: path.read_text() for path in folder.iterdir()} == files


def test_a_file_is_no_folder(checkout: Path, path_folder: Path) -> None:
    done = setup(checkout, environment(path_folder), "--device", "cpu", "--venv", f"{checkout}/requirements.txt")
    assert done.stderr == f"set-up: error: {checkout}/requirements.txt is a file; give a folder: --venv DIR\n"


def test_an_empty_folder_of_the_user_stays(checkout: Path, path_folder: Path) -> None:
    (checkout / "mine").mkdir()
    variables = environment(path_folder, RESEARCH_MIN_DISK_GB="999999")
    assert setup(checkout, variables, "--device", "cpu", "--venv", str(checkout / "mine")).returncode == 2
    assert (checkout / "mine").is_dir()


FAKE_PYTHON = """case "$*" in
    *"-m venv"*) for folder; do :; done; /bin/mkdir -p "$folder/bin"; /bin/cp "$0" "$folder/bin/python"
        /bin/cp "{uv}" "$folder/bin/uv"; echo >"$folder/pyvenv.cfg" ;;
    *ensurepip*) echo 3.11 ;;
    *version*) echo 3.11.7 ;;
esac"""


TORCH = "-q --no-deps torch==2.13.0+cpu"
OURS = "-q --no-deps --editable={root}/flashrag --editable={root}/verl"
KERNELS = "-q --no-deps --editable={root}/scripts/sglang_cpu"  # never beside the real ones


@pytest.mark.parametrize(
    ("arguments", "folder", "marker", "installed"),
    [
        ("--device cpu", ".venv", "cpu", [TORCH, "--no-deps -r {root}/requirements-cpu.txt", OURS]),
        ("--device gpu", ".venv", "gpu", ["-r {root}/requirements.txt", OURS]),
        (
            *("--sglang --device cpu", ".venv-sglang", "cpu sglang"),
            [TORCH, "--no-deps -r {root}/requirements-sglang-cpu.txt", KERNELS],
        ),
        ("--sglang --device gpu", ".venv-sglang", "gpu sglang", ["-r {root}/requirements-sglang.txt"]),
        (
            *("--retrieval --device gpu", ".venv-retrieval", "gpu retrieval"),
            ["-r {root}/requirements-retrieval-gpu.txt", "-q --no-deps --editable={root}/flashrag"],
        ),
        ("--sglang --device gpu --venv mine", "mine", "gpu sglang", ["-r {root}/requirements-sglang.txt"]),
    ],
)
def test_each_stack_is_installed_into_its_folder_and_then_recognised(
    arguments: str, folder: str, marker: str, installed: list[str], checkout: Path, path_folder: Path
) -> None:
    (checkout / "requirements-retrieval-gpu.txt").write_text("faiss-gpu==1\n")
    log = path_folder / "uv.log"
    executable(path_folder / "fake-uv", f"""echo "$*" >>'{log}'; [ "$1" != --version ] || echo uv 0.13.9""")
    executable(path_folder / "python3.11", FAKE_PYTHON.format(uv=path_folder / "fake-uv"))
    command, device = arguments.split(), marker.split()[0]
    variables = environment(path_folder, RESEARCH_MIN_DISK_GB="0")
    first = setup(checkout, variables, *command)
    assert f"s: {folder} for {device}, 3.11.7\n" in first.stdout, first.stderr
    assert (checkout / folder / "research-device").read_text() == f"{marker}\n"
    calls = [line.partition(f"--python {checkout}/{folder}/bin/python ")[2] for line in log.read_text().splitlines()]
    assert [call for call in calls if call and "--dry-run" not in call] == [
        line.format(root=checkout) for line in installed
    ]
    log.unlink()
    if folder == ".venv-sglang":  # the device is then that of the folder
        command = ["--sglang"]
    assert setup(checkout, variables, *command).stdout == f"set-up: {folder} is complete ({device}, 3.11.7)\n"
    assert not log.exists()


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
