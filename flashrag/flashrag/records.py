"""The records of a file: JSON lines, a JSON list, or parquet; JSON may be compressed (.gz, .xz, .zst).

A line of a .json file may be a record too, as many publishers name JSON lines so, and a JSON list may stand under
`data`, as TriviaQA's does. JSON is UTF-8, with or without a byte order mark, with any line ends.
Light: pyarrow is imported for parquet and .zst alone. Does not cover: what a record means (questions.py), csv.
"""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from flashrag.errors import UserError

BUFFER_BYTES = 1 << 20  # of .zst: the default halves the speed
EXPECTED_FILE = "a .jsonl, .json or .parquet file (JSON also as .gz, .xz or .zst)"


class Record(NamedTuple):
    """What stands at one place of a file: `line 3`, `record 3` of a list or `row 3` of a table, counted from 1.

    `fault` says why a line is not JSON; its content is then None.
    """

    place: str
    content: Any
    fault: str | None = None


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), BUFFER_BYTES)


_OPENERS: Mapping[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
# In this order a split's file is looked for.
ENDINGS = (*(form + packing for form in (".jsonl", ".json") for packing in _OPENERS), ".parquet")


def record_file_stem(name: str) -> str | None:
    """A file's name without folder and ending; None if its ending is none of `ENDINGS`.

    >>> record_file_stem("qa/NQ-open.dev.jsonl.xz"), record_file_stem("hotpotqa")
    ('NQ-open.dev', None)
    """
    file = PurePath(name).name
    return next((file.removesuffix(ending) for ending in ENDINGS if file.endswith(ending)), None)


def read_records(path: Path, fields: Collection[str] | None = None) -> Iterator[Record]:
    """Every record of a file in order, blank lines left out; raises `UserError` where the file cannot be read.

    Of a parquet file only the columns with a name in `fields`, in lower case, are read.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give {EXPECTED_FILE}")
    if record_file_stem(path.name) is None:
        raise UserError(f"{path} ends with {path.suffix!r}; give {EXPECTED_FILE}")
    if path.suffix == ".parquet":
        with _read(path):
            yield from _rows(path, fields)
        return
    with unpacked(path) as file:
        has_lines = path.name.removesuffix(_packing(path)).endswith(".jsonl")
        yield from _lines(file) if has_lines else _listed(file.read(), path)


@contextmanager
def unpacked(path: Path, key: str = "") -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where its ending is .gz, .xz or .zst.

    If the file cannot be read, or its archive is not whole, the block ends with a `UserError` that begins with `key`.
    """
    with _read(path, key), _OPENERS[_packing(path)](path) as file:
        yield file


@contextmanager
def _read(path: Path, key: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{key}{path} cannot be read ({error}); download it again, or unpack it") from error


def _packing(path: Path) -> str:
    return path.suffix if path.suffix in _OPENERS else ""


def _lines(file: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):  # bytes, so that only \n ends a line, not U+2028 or a form feed
        if not line.strip():
            continue
        try:
            record = Record(f"line {number}", json.loads(line.decode("utf-8-sig")))
        except (ValueError, RecursionError) as error:
            record = Record(f"line {number}", None, f"is not valid JSON ({error})")
        yield record


def _listed(content: bytes, path: Path) -> Iterator[Record]:
    """The records of a whole JSON document, or of its lines if each of them is one."""
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _lines(io.BytesIO(content))
            return
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    if isinstance(document, dict):
        document = next((value for name, value in document.items() if name.lower() == "data"), document)
    if not isinstance(document, list):
        raise UserError(f"{path} holds a {type(document).__name__}, expected a list of records, or one a line")
    for number, record in enumerate(document, start=1):
        yield Record(f"record {number}", record)


def _rows(path: Path, fields: Collection[str] | None) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if fields is None or name.lower() in fields]
            rows = (row for batch in file.iter_batches(columns=columns or names) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield Record(f"row {number}", row)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a parquet file ({error}); download it again") from error
