"""Writing a file or a folder so that it is either wholly there or not there at all.

The unfinished work is in a hidden folder beside the target, locked by its writer. A writer that was killed leaves that
folder behind, unlocked. The next writer of the same target removes it, and puts back an earlier target from inside it.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPLACED = "replaced"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to; it becomes `target` when the block ends without an error.

    An earlier `target` is replaced. On an error or Ctrl-C the earlier one stays, and the unfinished work is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    with locked(fresh):
        holder = fresh.rename(fresh.with_suffix(".tmp"))  # other writers look for this name only, and find it locked
        try:
            staging = holder / target.name
            yield staging
            if target.is_dir():  # a folder cannot be renamed over a folder that holds files
                target.rename(holder / REPLACED)
            staging.replace(target)
        finally:
            _remove(holder, target)


def write_text(target: Path, text: str) -> None:
    """Write a text file through `staged`; a lone surrogate (half a character) is written as "?"."""
    with staged(target) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="replace")


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold `folder` until the block, or this process, ends; raises BlockingIOError where another process holds it.

    Yields False where the file system has no locks; then nothing is held.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            raise
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def recover(target: Path) -> None:
    """Clean up after a killed writer of `target`: put back a folder that it moved away, remove its unfinished work."""
    for holder in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(OSError), locked(holder) as held:
            if held:
                _remove(holder, target)


def _remove(holder: Path, target: Path) -> None:
    if (holder / REPLACED).exists() and not target.exists():
        (holder / REPLACED).rename(target)
    shutil.rmtree(holder, ignore_errors=True)
