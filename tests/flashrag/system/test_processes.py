"""No descendant outlives a guarded block, however it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from flashrag.system.processes import guarded_processes

# A child that starts a grandchild in a session of its own and then ends: nothing of ours points to the grandchild.
ORPHAN = (
    "import subprocess, sys; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]], start_new_session=True)"
)
GUARDED = """
import sys, time
from pathlib import Path
from flashrag.system.processes import guarded_processes, start_process
marker, mode = sys.argv[1:]
with guarded_processes():
    start_process([sys.executable, "-c", {orphan!r}, marker], Path(marker + ".log")).wait()
    print("started", flush=True)
    if mode == "wait":
        time.sleep(600)
"""


def marked_processes(marker: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if marker in (process.info["cmdline"] or []) and "time.sleep(600)" in " ".join(process.info["cmdline"])
        and "guarded_processes" not in " ".join(process.info["cmdline"])
    ]  # fmt: skip


def start_guarded(marker: str, mode: str) -> subprocess.Popen:
    code = GUARDED.format(orphan=ORPHAN)
    process = subprocess.Popen([sys.executable, "-c", code, marker, mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_an_orphan_ends_with_the_block(tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    with start_guarded(marker, "leave") as process:
        assert process.wait(timeout=60) == 0
    assert marked_processes(marker) == []


def test_an_orphan_ends_on_ctrl_c_and_on_terminate(tmp_path: Path) -> None:
    for sent in (signal.SIGINT, signal.SIGTERM):
        marker = str(tmp_path / sent.name)
        with start_guarded(marker, "wait") as process:
            time.sleep(0.2)
            assert len(marked_processes(marker)) == 1
            process.send_signal(sent)
            assert process.wait(timeout=60) != 0
        assert marked_processes(marker) == []


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    code = (
        "import sys; from pathlib import Path; from flashrag.system.processes import start_process; "
        "child = start_process([sys.executable, '-c', 'import time; time.sleep(600)'], Path(sys.argv[1])); "
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code, marker], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


def test_a_process_that_was_there_before_the_block_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as older:
        try:
            with guarded_processes():
                pass
            assert older.poll() is None
        finally:
            older.kill()
