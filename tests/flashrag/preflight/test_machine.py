"""The rules about the machine, over facts that are made up."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashrag.preflight import MACHINE_RULES, Machine, Severity, examine, is_writable, output_folder, socket_folder

GOOD = Machine(
    cores=2,
    memory_bytes=8 * 2**30,
    temporary=Path("/tmp"),
    temporary_free_bytes=2**31,
    temporary_writable=True,
    unix_time_s=1_800_000_000.0,
    encoding="utf-8",
)


def findings(**changed: object) -> list[tuple[Severity, str, str]]:
    found = examine(MACHINE_RULES, SimpleNamespace(machine=replace(GOOD, **changed)))
    return [(finding.severity, finding.rule, finding.message) for finding in found]


def test_nothing_is_said_about_a_good_machine():
    assert findings() == []


@pytest.mark.parametrize(
    ("changed", "severity", "rule", "words"),
    [
        ({"temporary_writable": False}, Severity.ERROR, "machine.temporary", "/tmp is not writable; set TMPDIR"),
        ({"temporary_free_bytes": 2**20}, Severity.WARNING, "machine.temporary", "has 1 MiB left; expected 1.0 GiB"),
        ({"unix_time_s": 0.0}, Severity.WARNING, "machine.clock", "the clock says 1970-01-01; expected 2026 or later"),
        ({"encoding": "iso8859-1"}, Severity.WARNING, "machine.locale", "encoding is iso8859-1; expected UTF-8"),
    ],
)
def test_each_rule(changed, severity, rule, words):
    ((found_severity, found_rule, message),) = findings(**changed)
    assert (found_severity, found_rule) == (severity, rule)
    assert words in message


def test_a_socket_must_fit_into_its_folder():
    assert not [*socket_folder(Path("/" + "a" * 69), 37, "vLLM")]  # 70 + 37 = 107
    (finding,) = socket_folder(Path("/" + "ü" * 35), 37, "vLLM")  # 71 bytes
    assert "path of 71 bytes; expected at most 70, because vLLM makes sockets in it" in finding.message
    (finding,) = socket_folder(Path(__file__), 0, "Ray", "RAY_TMPDIR")
    assert "cannot be written, and Ray makes sockets in it: set RAY_TMPDIR to one that can" in finding.message


def test_this_machine():
    here = Machine.here()
    assert here.cores == len(os.sched_getaffinity(0))
    assert here.memory_bytes > 2**28
    assert here.temporary_writable


def test_an_output_folder_needs_room_and_a_place(tmp_path):
    (tmp_path / "file").write_text("")
    assert not [*output_folder("--out", tmp_path / "new" / "folder")]
    (full,) = output_folder("--out", tmp_path / "new", 2**60, "checkpoints")
    assert "checkpoints need 1073741824.0 GiB; free some" in full.message
    (blocked,) = output_folder("--out", tmp_path / "file" / "new")
    assert f"--out={tmp_path}/file/new: files cannot be written there ({tmp_path}/file is a file)" in blocked.message
    (tmp_path / "link").symlink_to("link")
    (lost,) = output_folder("--out", tmp_path / "link" / "new")
    assert f"files cannot be written there ({tmp_path}/link is a link to nowhere)" in lost.message
    (bytes_only,) = output_folder("--out", Path(os.fsdecode(b"\xff")))
    assert bytes_only.message.startswith("--out='\\udcff': the path is not UTF-8")
    bytes_only.message.encode()
    (home,) = output_folder("--out", Path("~/runs"))  # of --out=~/runs, which no shell changes
    assert home.message == "--out=~/runs: ~ is no home folder here; write the whole path"
    assert is_writable(tmp_path)
