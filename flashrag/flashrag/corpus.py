"""A corpus of passages: FlashRAG's jsonl, copied once into an Arrow file that is memory-mapped.

The jsonl may be compressed (.gz, .xz, .zst). The Arrow file is a cache named after the SHA-256 of the file as it is
given, so a changed corpus is never served from an old cache. It is in the folder of the index; if that is read-only, it
is in a temporary folder that is removed when the process ends. Fields other than `id` and `contents` are dropped. Ids
must be unique.
Does not cover: archives of several files, images.
"""

import atexit
import codecs
import hashlib
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from pydantic import BaseModel, Field, ValidationError

from flashrag.config import first_problem
from flashrag.document import Document, Hit
from flashrag.errors import UserError
from flashrag.records import unpacked
from flashrag.system.files import staged

EXPECTED_LINE = '{"id": "…", "contents": "\\"Title\\"\\ntext"}'
EXPECTED_FILE = f"a jsonl file with one {EXPECTED_LINE} a line, as it is or as .gz, .xz or .zst"
SCHEMA = pa.schema([("id", pa.string()), ("contents", pa.string())])
ROWS_PER_BATCH = 8192
BYTES_PER_BATCH = 64 << 20  # an Arrow string column holds 2 GiB at most; passages can be long
CACHE_FOLDER = "corpus_cache"


class Corpus:
    """The passages of one jsonl file by row number; `sha256` is the fingerprint of that file."""

    def __init__(self, path: Path, sha256: str, table: pa.Table) -> None:
        self.path = path
        self.sha256 = sha256
        self._ids = table.column("id")
        self._contents = table.column("contents")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> Document:
        if not 0 <= row < len(self):  # -1 is faiss's padding and must never become the last passage
            raise IndexError(f"row {row} of a corpus of {len(self)} passages")
        return Document(id=self._ids[row].as_py(), contents=self._contents[row].as_py())

    def documents(self, rows: Iterable[int]) -> list[Document]:
        return [self[int(row)] for row in rows]

    def hits(self, rows: Iterable[int], scores: np.ndarray) -> list[Hit]:
        return [Hit(document, score) for document, score in zip(self.documents(rows), scores.tolist(), strict=True)]

    def contents(self, start: int, stop: int) -> list[str]:
        """The texts of the rows from `start` up to `stop`, for building an index."""
        return self._contents.slice(start, stop - start).to_pylist()

    def check_index_of(self, count: int) -> None:
        """Raise UserError unless an index of `count` passages may be one of this corpus."""
        if count != len(self):
            raise UserError(
                f"index_path: the index holds {count} passages, but corpus_path has {len(self)} ({self.path}); "
                "give the corpus that it was built from, or build the index again"
            )


def open_corpus(path: Path, cache_parent: Path) -> Corpus:
    """The corpus at `path`, through a cache under `cache_parent`; raises a UserError that names the first bad line."""
    if not path.is_file():
        raise UserError(f"corpus_path: no file at {path}; give {EXPECTED_FILE}")
    sha256 = file_sha256(path)
    cache = cache_parent / CACHE_FOLDER / f"{sha256[:32]}.arrow"
    table = _mapped(cache)
    if table is None:
        cache = _write_cache(path, cache)
        table = _mapped(cache)
        assert table is not None, f"the corpus cache {cache} was written but cannot be opened"
    return Corpus(path, sha256, table)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CorpusLine(BaseModel):
    """A line of a corpus; a number as its id becomes text."""

    id: str = Field(coerce_numbers_to_str=True)
    contents: str


def read_lines(path: Path) -> Iterator[tuple[int, CorpusLine]]:
    """Every line that is not blank, with its number; raises a UserError with the number of the first bad one."""
    with unpacked(
        path, "corpus_path: "
    ) as file:  # read as bytes, so that only \n ends a line, not U+2028 or a form feed
        for number, line in enumerate(file, start=1):
            try:
                if line.strip():
                    yield number, CorpusLine.model_validate_json(line.removeprefix(codecs.BOM_UTF8))
            except ValidationError as error:
                expected = EXPECTED_FILE if number == 1 else EXPECTED_LINE
                problem = f"{first_problem(error, CorpusLine)}; expected {expected}"
                raise UserError(f"corpus_path: {path} line {number}: {problem}") from error


def _mapped(cache: Path) -> pa.Table | None:
    """The memory-mapped table of a cache file; None if the file is missing or damaged, and has to be written."""
    try:
        table = pyarrow.ipc.open_file(pa.memory_map(str(cache))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    return table if table.schema.equals(SCHEMA) else None


def _write_cache(path: Path, cache: Path) -> Path:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache.parent):
            pass
    except OSError:  # read-only: each process makes its own cache, and removes it at exit
        folder = Path(tempfile.mkdtemp(prefix="flashrag-corpus-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        cache = folder / cache.name
    try:
        with staged(cache) as staging, pyarrow.ipc.new_file(str(staging), SCHEMA) as writer:
            _copy_passages(path, writer)
    except OSError as error:
        raise UserError(
            f"corpus_path: the cache of {path} cannot be written to {cache.parent} ({error}); it needs about as much "
            "disk space as the corpus"
        ) from error
    return cache


def _copy_passages(path: Path, writer: pa.RecordBatchFileWriter) -> None:
    """Write every passage; raises UserError if there is none, or if two have the same id."""
    id_hashes = array("q")
    ids: list[str] = []
    contents: list[str] = []
    held_bytes = 0
    for _, line in read_lines(path):
        id_hashes.append(hash(line.id))
        ids.append(line.id)
        contents.append(line.contents)
        held_bytes += 4 * (len(line.id) + len(line.contents))  # UTF-8 takes at most four bytes per character
        if len(ids) == ROWS_PER_BATCH or held_bytes > BYTES_PER_BATCH:
            writer.write_batch(pa.record_batch([ids, contents], schema=SCHEMA))
            ids, contents, held_bytes = [], [], 0
    if ids:
        writer.write_batch(pa.record_batch([ids, contents], schema=SCHEMA))
    if not id_hashes:
        raise UserError(f"corpus_path: {path} holds no passages; expected one {EXPECTED_LINE} a line")
    _check_unique(path, id_hashes)


def _check_unique(path: Path, id_hashes: "array[int]") -> None:
    """Raise UserError if two lines have the same id. Only ids with a repeated hash are read and compared again."""
    hashes = np.sort(np.frombuffer(id_hashes, dtype=np.int64))
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated:
        return
    line_of: dict[str, int] = {}
    for number, line in read_lines(path):
        first = line_of.setdefault(line.id, number) if hash(line.id) in repeated else number
        if first != number:
            raise UserError(
                f"corpus_path: {path} lines {first} and {number} both have the id {line.id!r}; expected each id once"
            )
