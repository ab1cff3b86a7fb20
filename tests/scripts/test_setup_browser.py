"""scripts/setup_browser.sh on machines in every state: its PATH holds only what the test puts there."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup_browser.sh"
PROGRAM = "#!/bin/sh\n"
# Installs by writing the program beside itself, and keeps what it was asked.
APT_GET = """#!/bin/sh
echo "$*" >>"$0.log"
folder=${0%/*}
[ "$1" = update ] || { printf "#!/bin/sh\\n" >"$folder/chromium"; chmod +x "$folder/chromium"; }
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder for programs that has none but the shell's needs, and says that we are root."""
    for name in ("bash", "env", "chmod"):
        (tmp_path / name).symlink_to(shutil.which(name))
    add(tmp_path, "id", PROGRAM + "echo 0\n")
    return tmp_path


def add(machine: Path, name: str, text: str = PROGRAM) -> Path:
    (machine / name).write_text(text)
    (machine / name).chmod(0o755)
    return machine / name


def run(machine: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(machine), **variables}
    return subprocess.run([machine / "bash", SCRIPT], env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_a_chromium_that_is_there_is_left_alone(machine: Path, name: str):
    browser = add(machine, name)
    add(machine, "apt-get", APT_GET)
    done = run(machine)
    assert (done.returncode, done.stdout) == (0, f"browser: {browser}\n")
    assert not (machine / "apt-get.log").exists()


def test_a_named_one_counts_and_a_wrong_name_is_an_error(machine: Path, tmp_path: Path):
    browser = add(tmp_path, "my-browser")
    assert run(machine, RESEARCH_CHROMIUM=str(browser)).returncode == 0
    add(machine, "chromium")
    wrong = run(machine, RESEARCH_CHROMIUM="/nowhere/chromium")
    assert wrong.returncode == 1 and "RESEARCH_CHROMIUM=/nowhere/chromium is not a program" in wrong.stderr


def test_root_installs_what_is_missing(machine: Path):
    add(machine, "apt-get", APT_GET)
    done = run(machine)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"browser: {machine / 'chromium'}")
    asked = (machine / "apt-get.log").read_text().splitlines()
    assert asked == ["update -qq", "install -y -qq --no-install-recommends chromium"]


def test_where_nothing_can_be_installed_it_says_what_to_do(machine: Path):
    bare = run(machine)
    assert bare.returncode == 1 and "no apt-get to install it with; install a Chromium by hand" in bare.stderr
    add(machine, "apt-get", "#!/bin/sh\nexit 100\n")
    failed = run(machine)
    assert failed.returncode == 1 and "could not install chromium" in failed.stderr
    add(machine, "id", PROGRAM + "echo 1000\n")
    user = run(machine)
    assert user.returncode == 1 and "run 'sudo apt-get install --no-install-recommends chromium'" in user.stderr
