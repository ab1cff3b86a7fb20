"""Files of trajectories: JSON lines, each a gzip member of its own, appended by one process and read by anyone.

    <directory>/<train|val>/step_000010.<writer>.jsonl.gz

Each process writes files of its own, so nothing is locked. A member is complete in itself: whatever kills a run, all
but the line being written can be read, by `read_trajectories` at any time and by `pandas.read_json(path, lines=True)`
once `cut_torn_tails` has run, which every start does. Does not cover: what a line holds (trajectories.py).
"""

import asyncio
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from flashrag.errors import ReSearchError, UserError

SPLITS = ("train", "val")
_FILE_NAME = re.compile(r"step_(\d{6,})\.[0-9a-f]+\.jsonl\.gz")
_GZIP_WBITS = 31
_READ_BYTES = 1 << 16
# A kill tears at most the file that each worker was writing.
_FILES_TO_MEND = 256
# Level 6 takes six times as long for a tenth less: most of a line is token ids and log-probabilities.
_COMPRESSION = 1


class TrajectoryNotWritten(ReSearchError):
    """The disk refused a trajectory."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Which steps stay on disk: each multiple of `keep_every`, and the newest `keep_last`."""

    keep_every: int = 1
    keep_last: int = 2

    def expired(self, steps: set[int], current: int) -> set[int]:
        """The steps to delete while `current` is being written.

        A step after it is the remainder of a run that was killed and resumed before it; it waits until it is overtaken.
        """
        newest = sorted(step for step in steps | {current} if step <= current)[-self.keep_last :]
        return {step for step in steps if step < current and step % self.keep_every and step not in newest}


class TrajectoryWriter:
    """Appends lines to this process's files from a thread of its own; the event loop only hands them over."""

    def __init__(self, directory: Path, retention: Retention):
        self.directory = directory
        self.retention = retention
        self._name = uuid4().hex[:12]
        self._step_by_split: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trajectories")

    async def write(self, split: str, step: int, encode: Callable[[], bytes]) -> None:
        """Write the line that `encode` makes; when this returns, no kill can lose it.

        Raises `TrajectoryNotWritten`; the file then holds what it held before.
        """
        await asyncio.wrap_future(self._thread.submit(self._write, split, step, encode))

    def _write(self, split: str, step: int, encode: Callable[[], bytes]) -> None:
        path = self.directory / split / f"step_{step:06d}.{self._name}.jsonl.gz"
        try:
            if self._step_by_split.get(split) != step:
                path.parent.mkdir(parents=True, exist_ok=True)
                delete_expired(path.parent, step, self.retention)
                self._step_by_split[split] = step
            append_member(path, gzip.compress(encode() + b"\n", _COMPRESSION))
        except OSError as error:
            raise TrajectoryNotWritten(
                f"a trajectory cannot be written to {path} ({error}); make room there, or set search.trajectory_dir"
            ) from error


def append_member(path: Path, member: bytes) -> None:
    """Append a gzip member in one write; a write that the disk cuts short is taken back."""
    with path.open("ab", buffering=0) as file:
        whole = file.tell()
        try:
            written = file.write(member)
            if written != len(member):
                raise OSError(f"{written} of {len(member)} bytes were written")
        except OSError:
            os.ftruncate(file.fileno(), whole)
            raise


def delete_expired(folder: Path, current: int, retention: Retention) -> None:
    """Delete the files of expired steps in one split's folder; several processes may do so at once."""
    steps = {path: _step_of(path) for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name)}
    expired = retention.expired(set(steps.values()), current)
    for path, step in steps.items():
        if step in expired and path.is_file():
            path.unlink(missing_ok=True)


def trajectory_files(directory: Path, split: str = "*", step: int | None = None) -> list[Path]:
    """The files of a run: train before val, by step."""
    found = [path for path in directory.glob(f"{split}/step_*.jsonl.gz") if _FILE_NAME.fullmatch(path.name)]
    chosen = [path for path in found if step is None or _step_of(path) == step]
    return sorted(chosen, key=lambda path: (path.parent.name, _step_of(path), path.name))


def read_trajectories(directory: Path, split: str = "*", step: int | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a run's files as objects; a torn last line of a file is left out, other damage is a `UserError`."""
    for path in trajectory_files(directory, split, step):
        yield from read_file(path)


def read_file(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of one file as objects."""
    read = 0
    try:
        with path.open("rb") as file:
            for end, text in whole_members(file):
                yield from (json.loads(line) for line in text.split(b"\n") if line)
                read = end
    except (zlib.error, ValueError) as error:
        raise UserError(f"{path} is damaged after byte {read} ({error}); what follows there is lost") from error


def whole_members(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Where each complete gzip member of a file ends, and its content; one that the file's end cuts off is left out."""
    chunk = b""
    while True:
        member = zlib.decompressobj(_GZIP_WBITS)
        parts = []
        while not member.eof:
            chunk = chunk or file.read(_READ_BYTES)
            if not chunk:
                return
            parts.append(member.decompress(chunk))
            chunk = member.unused_data
        yield file.tell() - len(chunk), b"".join(parts)


def cut_torn_tails(directory: Path) -> list[Path]:
    """Cut what a kill left half-written off the newest files and return those; call while nothing writes there."""
    torn = []
    newest = sorted(trajectory_files(directory), key=lambda path: path.stat().st_mtime)[-_FILES_TO_MEND:]
    for path in newest:
        with path.open("rb+") as file:
            try:
                whole = max((end for end, _ in whole_members(file)), default=0)
            except zlib.error:
                continue  # damage of another kind, which reading reports
            if whole < path.stat().st_size:
                file.truncate(whole)
                torn.append(path)
    return torn


def _step_of(path: Path) -> int:
    match = _FILE_NAME.fullmatch(path.name)
    assert match is not None, f"{path} was chosen by its name"
    return int(match[1])
