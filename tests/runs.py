"""A training run as a process of a test: its console in a file, and a limit to each wait for it.

A wait that ends without what it waits for tells all that is known of the run: its console, the end of the trainer's
log, and where each of its processes stands.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from flashrag.system.processes import read_log, start_process, stop_process, tail

LIMIT_S = 600.0  # for a start and a few steps, which take 150 s on two cores that do nothing else
POLL_S = 0.2
PY_SPY = Path(sys.executable).with_name("py-spy")  # comes with Ray
STACK_LINES = 40
# Processes of Ray whose stacks say nothing of a run.
NOT_TOLD = re.compile(r"ray::(IDLE|DashboardAgent|RuntimeEnvAgent)|/ray/(core|dashboard|autoscaler|_private)/")


@dataclass(frozen=True)
class Run:
    process: subprocess.Popen
    console_file: Path
    log: Path

    @property
    def console(self) -> str:
        return read_log(self.console_file)

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def wait_for_step(self, step: int, limit_s: float = LIMIT_S) -> None:
        """Wait for the line of a step on the console."""
        self.wait_for_line(rf" *{step}(/\d+)? \|", limit_s)

    def wait_for_line(self, beginning: str, limit_s: float = LIMIT_S) -> None:
        """Wait for a line on the console that begins so."""
        line = re.compile(f"^{beginning}", re.MULTILINE)
        self._wait(lambda: bool(line.search(self.console)), f"a line that begins {beginning!r}", limit_s)

    def wait(self, limit_s: float = LIMIT_S) -> str:
        """Wait for the end of the run; its whole console."""
        self._wait(lambda: self.process.poll() is not None, "its end", limit_s)
        return self.console

    def kill_process(self, name: str) -> None:
        """SIGKILL to the process of the run that calls itself so; Ray names the process of an actor after its class."""
        descendants = psutil.Process(self.process.pid).children(recursive=True)
        (process,) = [process for process in descendants if name in " ".join(process.cmdline()[:1])]
        process.kill()

    def _wait(self, happened: Callable[[], bool], what: str, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not happened():
            ended = self.process.poll() is not None and not happened()
            assert not ended, f"the run ended before {what}: {self.console}"
            assert time.monotonic() < deadline, self._stalled(f"the run waited {limit_s:.0f} s for {what}")
            time.sleep(POLL_S)

    def _stalled(self, what: str) -> str:
        log = f"{self.log} ends:\n{tail(self.log)}"
        return "\n\n".join([what, self.console, log, *stacks(psutil.Process(self.process.pid))])


@contextmanager
def training(
    command: Sequence[str],
    folder: Path,
    save_path: Path,
    environment: Mapping[str, str],
) -> Iterator[Run]:
    """A run that is started in a folder, and ended after the block if it has not."""
    console_file = folder / f"console_{len(list(folder.glob('console_*.txt')))}.txt"
    process = start_process(["env", f"--chdir={folder}", *command], console_file, environment)
    try:
        yield Run(process, console_file, save_path / "train.log")
    finally:
        stop_process(process)


def stacks(root: psutil.Process) -> Iterator[str]:
    """What each process of a tree does at the moment."""
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error, subprocess.TimeoutExpired, OSError):  # the rest of what is told matters more
            name = " ".join(process.cmdline()[:3])
            if name and not NOT_TOLD.search(name):
                dump = [PY_SPY, "dump", "--pid", str(process.pid)]
                done = subprocess.run(dump, capture_output=True, text=True, timeout=60, check=False)
                told = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("Process ")]
                yield "\n".join([f"{process.pid} {name}", *told[:STACK_LINES]])
