"""JSON lines that survive a kill: written a line at a time, read without the line that a kill tore.

Each line goes to the system in one write, so that a killed process loses the line that it was writing and no other. A
file named `*.gz` holds one gzip member per line; any gzip reader can read it. A torn last line is left out when a file
is read, and cut off before a file is continued; damage elsewhere is an error.
Does not cover: two writers of one file at once (a run's folder is locked; workers write files of their own).
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar

from flashrag.errors import UserError
from flashrag.system.files import staged

T = TypeVar("T")
_GZIP_WBITS = 31
_READ_BYTES = 1 << 16
# Level 6 takes six times as long and saves another tenth: most of a trajectory is token ids and log-probabilities.
_GZIP_LEVEL = 1


def encode_object(content: Any) -> bytes:
    """One line, without its line break; a lone surrogate (half a character) is written as "?"."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace")


def append_line(path: Path, line: bytes) -> int:
    """Append one line in one write, and return how many bytes that took.

    Raises `OSError` when the disk does not take all of it; the file is then unchanged.
    """
    written = line + b"\n"
    if path.suffix == ".gz":
        written = gzip.compress(written, _GZIP_LEVEL)
    with path.open("ab", buffering=0) as file:
        whole = file.tell()
        try:
            count = file.write(written)
            if count != len(written):
                raise OSError(f"{path}: {count} of {len(written)} bytes were written; is the disk full?")
        except OSError:
            os.ftruncate(file.fileno(), whole)
            raise
    return len(written)


def read_lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, without their line breaks; raises `UserError` where a compressed file is damaged."""
    for line in _whole_lines(path):
        yield line.content


def cut_torn_tail(path: Path) -> bool:
    """Cut off a half-written line at a file's end; returns whether there was one. Nothing else may write the file."""
    try:
        whole = max((line.end for line in _whole_lines(path)), default=0)
    except UserError:
        return False  # damage of another kind, which reading reports
    if whole == path.stat().st_size:
        return False
    os.truncate(path, whole)
    return True


class _Line(NamedTuple):
    start: int  # bytes
    end: int
    content: bytes


def _whole_lines(path: Path) -> Iterator[_Line]:
    with path.open("rb") as file:
        yield from (_gzip_lines(file, path) if path.suffix == ".gz" else _plain_lines(file))


def _plain_lines(file: BinaryIO) -> Iterator[_Line]:
    start = 0
    for line in file:
        if not line.endswith(b"\n"):
            return
        end = start + len(line)
        if line.strip():
            yield _Line(start, end, line[:-1])
        start = end


def _gzip_lines(file: BinaryIO, path: Path) -> Iterator[_Line]:
    """A line for each complete member; one that the file's end cuts off is left out."""
    start, chunk = 0, b""
    while True:
        member, parts = zlib.decompressobj(_GZIP_WBITS), []
        while not member.eof:
            chunk = chunk or file.read(_READ_BYTES)
            if not chunk:
                return
            try:
                parts.append(member.decompress(chunk))
            except zlib.error as error:
                raise UserError(f"{path} is damaged after byte {start} ({error}); the rest of it is lost") from error
            chunk = member.unused_data
        end = file.tell() - len(chunk)
        for line in b"".join(parts).split(b"\n"):
            if line:
                yield _Line(start, end, line)
        start = end


class GrowingFile:
    """A text file that another process appends to, read from where the last read ended."""

    def __init__(self, path: Path, from_byte: int = 0):
        self.path = path
        self.read_bytes = from_byte

    def new_lines(self) -> list[str]:
        """The complete lines that were added since the last call; the file may not exist yet."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self.read_bytes)
            complete, line_break, _ = file.read().rpartition(b"\n")
        self.read_bytes += len(complete) + len(line_break)
        return complete.decode("utf-8", errors="replace").split("\n") if line_break else []


class KeyedLog(Generic[T]):
    """The records of a growing file by key: the last line of a key is the one that counts.

    Only positions are held in memory, never the records. A file that is not there is an empty log; nothing is created
    or changed before the first `append`. Reading and writing may be mixed. `decode` raises `UserError` or `ValueError`
    for a line that is not a record.
    """

    def __init__(
        self, path: Path, key: Callable[[T], str], encode: Callable[[T], bytes], decode: Callable[[bytes], T]
    ) -> None:
        self.path = path
        self._key, self._encode, self._decode = key, encode, decode
        self._places: dict[str, tuple[int, int]] = {}  # offset and length in bytes
        self._end = 0
        if path.exists():
            self._read_places()

    def _read_places(self) -> None:
        for number, line in enumerate(_whole_lines(self.path), start=1):
            try:
                name = self._key(self._decode(line.content))
            except (UserError, ValueError, LookupError, TypeError) as error:
                problem = f"{self.path} line {number} cannot be read ({error})"
                raise UserError(f"{problem}; remove that line to go on") from error
            self._places[name] = (line.start, line.end - line.start)
            self._end = line.end

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def append(self, record: T) -> None:
        """Append a record after the last whole line; it replaces an earlier one with the same key."""
        if self.path.exists() and self.path.stat().st_size > self._end:
            os.truncate(self.path, self._end)
        length = append_line(self.path, self._encode(record))
        self._places[self._key(record)] = (self._end, length)
        self._end += length

    def read(self, names: Iterable[str] | None = None) -> Iterator[T]:
        """The records of these keys, in this order, or all of them; keys without a record are left out."""
        names = list(self._places) if names is None else names
        places = [self._places[name] for name in names if name in self._places]
        if not places:
            return
        with self.path.open("rb") as file:
            for offset, length in places:
                file.seek(offset)
                yield self._decode(file.read(length))

    def rewrite(self, records: Iterable[T]) -> None:
        """Replace everything in the file by these records; a failure changes nothing."""
        places: dict[str, tuple[int, int]] = {}
        end = 0
        with staged(self.path) as unfinished, unfinished.open("wb") as file:
            for record in records:
                length = file.write(self._encode(record) + b"\n")
                places[self._key(record)] = (end, length)
                end += length
        self._places, self._end = places, end
