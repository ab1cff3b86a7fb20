"""Two Ray nodes on this machine, started as on two: each with an address, a folder, a home and a clean environment.

Whatever other Ray runs on the machine is left alone.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil

from flashrag.system.local_server import free_port
from flashrag.system.processes import start_process, stop_process, tail

HEAD, OTHER = "127.0.0.2", "127.0.0.3"
TOKEN = "the-clusters-token"
PATIENCE = {"RAY_raylet_start_wait_time_s": "120"}  # two cores may have much else to do
# Ray counts a node that has died as living for minutes, in place of seconds: what is seen cannot depend on that moment.
LATE = {"RAY_health_check_failure_threshold": "100"}
STARTED = "Ray runtime started"
BINARY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class TwoNodes:
    """The nodes, the folder that holds all that they write, and what a command needs to join them."""

    head: Popen
    other: Popen
    folder: Path
    environment: dict[str, str]

    def kill_other(self) -> None:
        """As if the machine lost its power."""
        tree = processes_of(self.other)
        for process in tree:
            process.suspend()  # none of them notices that another one is gone
        for process in tree:
            process.kill()


def processes_of(node: Popen) -> list[psutil.Process]:
    return [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]


@contextmanager
def two_nodes(cpus: int = 16, gpus: int = 1) -> Iterator[TwoNodes]:
    port = free_port()
    with tempfile.TemporaryDirectory(
        prefix="ray", ignore_cleanup_errors=True
    ) as name:  # Ray's sockets want short paths
        folder = Path(name)
        size = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--min-worker-port=0", "--max-worker-port=0"]
        first = ["--head", f"--port={port}", "--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        head = _start(folder, "a", HEAD, *first, *size)
        try:
            _wait(head, folder, "a")
            other = _start(folder, "b", OTHER, f"--address={HEAD}:{port}", *size)
            try:
                _wait(other, folder, "b")
                token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
                yield TwoNodes(head, other, folder, {"RAY_ADDRESS": f"{HEAD}:{port}", **token})
            finally:
                stop_process(other)
        finally:
            stop_process(head)


def _start(folder: Path, node: str, address: str, *arguments: str) -> Popen:
    home = folder / node
    home.mkdir()
    clean = ["env", "-i", f"--chdir={home}", f"PATH={os.environ['PATH']}", f"HOME={home}"]
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **PATIENCE, **LATE}
    clean += [f"{name}={value}" for name, value in settings.items()]
    start = [str(BINARY), "start", "--block", "--disable-usage-stats", f"--node-ip-address={address}"]
    return start_process([*clean, *start, f"--temp-dir={home}", *arguments], folder / f"{node}.log")


def _wait(process: Popen, folder: Path, node: str) -> None:
    log, deadline = folder / f"{node}.log", time.monotonic() + 120
    while STARTED not in log.read_text(encoding="utf-8"):
        assert process.poll() is None and time.monotonic() < deadline, tail(log)
        time.sleep(0.2)
