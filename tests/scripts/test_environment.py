"""What set-up asks about an environment: pip's settings in uv's words, and pins that are not met."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import environment

ROOT = Path(__file__).resolve().parents[2]


def test_pip_settings_follow_pips_precedence() -> None:
    listing = """\
global.index-url='https://a.example/simple'
install.index-url='https://b.example/simple'
:env:.find-links='/from/env'
global.find-links='/from/file'
global.extra-index-url='https://c.example/simple\\nhttps://d.example/simple'
download.timeout='5'
a line that is no setting
"""
    assert environment.parse_pip_config(listing) == {
        "index-url": "https://b.example/simple",  # [install] is stronger than [global]
        "find-links": "/from/env",  # a variable is stronger than any file
        "extra-index-url": "https://c.example/simple\nhttps://d.example/simple",
    }


def test_uv_gets_the_same_sources_without_missing_folders(tmp_path: Path) -> None:
    there = tmp_path / "a b"
    there.mkdir()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    address = there.as_uri()
    assert "%20" in address
    pip = {
        "index-url": "https://a.example/simple",
        "extra-index-url": f"{address}\nfile:///nowhere/simple https://c.example/simple",
        "find-links": f"/nowhere/wheels {wheels} https://d.example/links.html",
        "cert": "/etc/cert.pem",
        "trusted-host": "a.example\nb.example",
        "no-index": "false",
        "timeout": "180",
    }
    assert environment.uv_environment(pip) == {
        "UV_DEFAULT_INDEX": "https://a.example/simple",
        "UV_INDEX": f"{address} https://c.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": f"{wheels},https://d.example/links.html",
        "UV_INSECURE_HOST": "a.example b.example",
        "SSL_CERT_FILE": "/etc/cert.pem",
    }
    assert environment.uv_environment({}) == {}
    assert environment.uv_environment({"no-index": "1"}) == {"UV_NO_INDEX": "1"}


def test_pins_are_compared_with_what_is_installed() -> None:
    requirements = [
        "# a comment",
        "",
        "torch==2.13.0+cpu         # via x",
        "PyStemmer==3.1.0",
        "ray[default]==2.60.0",
        "verl[vllm]==0.9.1",
        "openai",
        "tqdm",
        "some.name_x==1",
    ]
    installed = {"torch": "2.13.0", "pystemmer": "3.1.0", "ray": "2.60.0", "openai": "3.54.0", "some-name-x": "1"}
    assert environment.not_as_pinned(requirements, installed) == ["torch==2.13.0+cpu", "verl[vllm]==0.9.1", "tqdm"]


def test_check_command_reports_the_first_few(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("pytest\n" + "".join(f"no-such-package-{number}==1\n" for number in range(7)))
    command = [sys.executable, "-I", str(ROOT / "scripts" / "environment.py"), "check", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == " ".join(f"no-such-package-{number}==1" for number in range(5)) + " and 2 more\n"
    requirements.write_text("pytest\n")
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0


def test_settings_reach_the_shell_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's$HOME"
    folder.mkdir()
    for name in ("UV_FIND_LINKS", "UV_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CERT", "/from/pip.pem")
    monkeypatch.setenv("SSL_CERT_FILE", "/mine.pem")
    script = 'eval "$("$0" "$1" uv-settings)"; printf "%s|" "$UV_FIND_LINKS" "$SSL_CERT_FILE" "${UV_INDEX-unset}"'
    python = _python_with_pip()
    command = ["bash", "-c", script, python, str(ROOT / "scripts" / "environment.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}|/mine.pem|unset|"


def _python_with_pip() -> str:
    """This environment's Python, or the one that it was made from: an environment may have been made without pip."""
    for python in (sys.executable, getattr(sys, "_base_executable", sys.executable)):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
            return python
    pytest.fail("neither this environment nor its base has pip, which scripts/setup.sh uses")
