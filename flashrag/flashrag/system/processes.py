"""Child processes that never outlive this one: engines, servers, and the processes that these start.

Ray and vLLM start processes of their own, which a signal to the first one does not reach. So this process adopts
orphans (Linux child subreaper) and ends every descendant before it exits. If it cannot (SIGKILL, or no memory left),
the kernel ends its children.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from flashrag.system.network import direct_environment

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STOP_GRACE_S = 15.0
TAIL_LINES = 25
libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def guarded_processes() -> Iterator[None]:
    """Within the block SIGTERM acts like Ctrl-C. No process that it started is left after it, however it ends."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    previous, older = signal.signal(signal.SIGTERM, _interrupt), psutil.Process().children(recursive=True)
    # A shell that starts this process in the background makes it ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        # A second Ctrl-C must not interrupt the cleaning-up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            end_descendants(older)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, previous)


def run_guarded(work: Callable[[], None], resume_hint: str | Callable[[], str]) -> None:
    """Do work that starts processes, and end those that are left; a `KeyboardInterrupt` then carries the hint."""
    try:
        with guarded_processes():
            work()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(resume_hint if isinstance(resume_hint, str) else resume_hint()) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def start_process(command: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start a command in a session of its own (a Ctrl-C in the terminal reaches us, not it), output into a file.

    When the calling thread ends, even because SIGKILL ends its process, the command gets a SIGTERM.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **direct_environment(os.environ), **(env or {})},
            start_new_session=True,
            preexec_fn=end_with_parent,  # a single system call: nothing in it can wait for a lock
        )


def end_with_parent() -> None:
    """Called in a new child: when the thread that started it ends, the child gets a SIGTERM."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def stop_process(process: subprocess.Popen) -> None:
    """End one child and its descendants: SIGTERM first, SIGKILL after 15 s."""
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _end(tree)
    process.wait()


def end_descendants(spared: Sequence[psutil.Process]) -> None:
    """End every other descendant of this process."""
    descendants = [process for process in psutil.Process().children(recursive=True) if process not in spared]
    for process in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _end(descendants)


def _end(processes: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=STOP_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_GRACE_S)


def tail(path: Path, from_byte: int = 0) -> str:
    """The last lines of a log, or of its part from a byte on, for an error message."""
    return "\n".join(read_log(path, from_byte).splitlines()[-TAIL_LINES:])


def read_log(path: Path, from_byte: int = 0) -> str:
    """A log, or its part from a byte on; empty if it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as log:
        log.seek(from_byte)
        return log.read().decode("utf-8", errors="replace")
    return ""
