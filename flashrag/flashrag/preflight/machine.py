"""The machine as a command finds it: cores, memory, disk, temporary folder, clock and locale, and the rules about them.

`Machine.here()` gathers the facts without torch. Does not cover: GPUs (system/machine.py counts them), the network.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from flashrag.errors import UserError
from flashrag.preflight.findings import Finding, error, fact, warning

GIB = 2**30
LEAST_TEMPORARY_BYTES = GIB
MAX_SOCKET_PATH = 107  # bytes of a Unix socket's path, Linux's limit
OLDEST_CLOCK = 1_767_225_600  # 2026-01-01: certificates and tokens of today are not valid yet before it
_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes are of memory that this process may use (a container's limit counts), and of free disk."""

    cores: int
    memory_bytes: int
    temporary: Path
    temporary_free_bytes: int
    temporary_writable: bool
    unix_time_s: float
    encoding: str

    @classmethod
    def here(cls) -> "Machine":
        temporary = Path(tempfile.gettempdir())
        return cls(
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=_memory_bytes(),
            temporary=temporary,
            temporary_free_bytes=free_bytes(temporary),
            temporary_writable=is_writable(temporary),
            unix_time_s=time.time(),
            encoding=sys.getfilesystemencoding(),
        )


class MachineFacts:
    """Base of a command's facts: the machine that it runs on."""

    @fact
    def machine(self) -> Machine:
        return Machine.here()


def _memory_bytes() -> int:
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # "max": no limit
        return min(total, int(_CGROUP_MEMORY.read_text()))
    return total


def nearest_existing(path: Path) -> Path:
    """`path`, or else its nearest parent that exists. A link to nowhere exists: no file can take its place."""
    path = path.absolute()
    while not (path.exists() or path.is_symlink()) and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """The free disk of the file system that `path` is on, or would be on."""
    return psutil.disk_usage(str(nearest_existing(path))).free


def is_writable(folder: Path) -> bool:
    """Whether files could be made in the folder, or the folder itself where it is missing."""
    existing = nearest_existing(folder)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def check_readable(key: str, path: Path) -> None:
    """Raise UserError where `path` is there, but is no file that this user may read, or an empty one."""
    if path.is_dir():
        problem = "is a folder, expected a file"
    elif path.exists() and not os.access(path, os.R_OK):
        problem = "must not be read by you; see its permissions"
    elif path.is_file() and not path.stat().st_size:
        problem = "is empty"
    else:
        return
    raise UserError(f"{key}: {path} {problem}; give another file")


def gib(count: float) -> str:
    """Bytes for people.

    >>> gib(3 * 2**30), gib(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def output_folder(
    key: str, folder: Path, needed_bytes: int | Callable[[], int] = 0, for_what: str = ""
) -> Iterator[Finding]:
    """Findings about a folder that a command will write to: it must be writable and have room for `needed_bytes`.

    A function for them may raise `UserError` where they are unknown: another rule tells the reason.
    """
    if folder.parts[:1] == ("~",):
        yield error(f"{key}={folder}: ~ is no home folder here; write the whole path")
        return
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        yield error(
            f"{key}={str(folder)!r}: the path is not UTF-8, which not every library writes to; give another one"
        )
        return
    if not is_writable(folder):
        existing = nearest_existing(folder)
        reason = "not writable" if existing.is_dir() else "a file" if existing.exists() else "a link to nowhere"
        yield error(f"{key}={folder}: files cannot be written there ({existing} is {reason}); give another folder")
        return
    needed = needed_bytes if isinstance(needed_bytes, int) else 0
    if callable(needed_bytes):
        with suppress(UserError):
            needed = needed_bytes()
    if (free := free_bytes(folder)) < needed:
        yield error(
            f"{key}={folder}: {gib(free)} are free, but {for_what} need {gib(needed)}; free some, or give a folder on "
            "another disk"
        )


def temporary_folder(facts: MachineFacts) -> Iterator[Finding]:
    machine = facts.machine
    if not machine.temporary_writable:
        yield error(f"the temporary folder {machine.temporary} is not writable; set TMPDIR to one that is")
    elif machine.temporary_free_bytes < LEAST_TEMPORARY_BYTES:
        free, least = gib(machine.temporary_free_bytes), gib(LEAST_TEMPORARY_BYTES)
        yield warning(
            f"the temporary folder {machine.temporary} has {free} left; expected {least} or more, for sockets and "
            "spilled objects: free some, or set TMPDIR to another disk"
        )


def socket_folder(folder: Path, name_bytes: int, who: str, variable: str = "TMPDIR") -> Iterator[Finding]:
    """Findings about the temporary folder of a program that makes sockets there, with names of up to `name_bytes`.

    `variable` is the one by which the program is given another folder.
    """
    if (length := len(os.fsencode(folder))) > (most := MAX_SOCKET_PATH - name_bytes):
        yield error(
            f"the temporary folder {folder} has a path of {length} bytes; expected at most {most}, because {who} makes "
            f"sockets in it: set {variable} to a shorter one"
        )
    elif not is_writable(folder):
        yield error(
            f"the temporary folder {folder} cannot be written, and {who} makes sockets in it: set {variable} to one "
            "that can"
        )


def clock(facts: MachineFacts) -> Iterator[Finding]:
    if (now := facts.machine.unix_time_s) < OLDEST_CLOCK:
        today = time.strftime("%Y-%m-%d", time.gmtime(now))
        yield warning(f"the clock says {today}; expected 2026 or later: certificates would be refused. Set the clock")


def locale(facts: MachineFacts) -> Iterator[Finding]:
    if (encoding := facts.machine.encoding.lower()) not in ("utf-8", "utf8"):
        yield warning(
            f"the locale's encoding is {encoding}; expected UTF-8, because file names and questions hold any letter: "
            "export LC_ALL=C.UTF-8"
        )


MACHINE_RULES = {"machine.temporary": temporary_folder, "machine.clock": clock, "machine.locale": locale}
