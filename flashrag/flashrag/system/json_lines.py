"""A JSON-lines file that grows while a run lives, read by key: the last line of a key is the one that counts.

Each line goes to the system in one write: a killed process loses the line that it was writing and no other, and that
torn line is cut off when the log is next opened. Only positions are held in memory, never the records.
Does not cover: two writers at once (the run folder is locked).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flashrag.errors import UserError
from flashrag.system.files import staged


class _Place(NamedTuple):
    offset: int
    length: int


class KeyedLog:
    """The records of a file by the text in their field `key`; a file that is not there is an empty log.

    Reading and writing may be mixed; nothing is created or changed before the first `append`.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self.path = path
        self.key = key
        self._places: dict[str, _Place] = {}
        self._end = 0
        if path.exists():
            self._read_places()

    def _read_places(self) -> None:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                name = _read_key(line, self.key)
                if name is None or not line.endswith(b"\n"):
                    if lines.read(1):
                        raise UserError(f"{self.path} line {number} is damaged; remove that line to go on")
                    return
                self._places[name] = _Place(self._end, len(line))
                self._end += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def keys(self) -> list[str]:
        """Every key, in the order of first appearance."""
        return list(self._places)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record behind everything whole; it takes the place of an earlier one with the same key."""
        line = encode_line(record)
        with self.path.open("r+b" if self.path.exists() else "xb", buffering=0) as file:
            file.truncate(self._end)
            file.seek(self._end)
            written = file.write(line)
        if written != len(line):
            raise OSError(f"{self.path}: {written} of {len(line)} bytes were written; is the disk full?")
        self._places[record[self.key]] = _Place(self._end, len(line))
        self._end += len(line)

    def read(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The records of these keys, in this order; keys without a record are left out."""
        places = [self._places[name] for name in names if name in self._places]
        if not places:
            return
        with self.path.open("rb") as file:
            for place in places:
                file.seek(place.offset)
                yield json.loads(file.read(place.length))

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Put these records in the place of everything in the file, or change nothing where that fails."""
        with staged(self.path) as unfinished, unfinished.open("wb") as file:
            file.writelines(encode_line(record) for record in records)
        self._places.clear()
        self._end = 0
        self._read_places()


def encode_line(record: Mapping[str, Any]) -> bytes:
    """A record as one line; a lone surrogate (half a character that a model sampled) is written as "?"."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")


def _read_key(line: bytes, key: str) -> str | None:
    try:
        name = json.loads(line)[key]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return name if isinstance(name, str) else None
