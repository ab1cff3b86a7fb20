"""The vectors of a corpus on disk: a folder of numbered .npy parts with a manifest that names their source.

A part appears whole or not at all, so an encoding run that was killed resumes at the first missing one. Vectors are
read in blocks from memory-mapped files; no more than one block is in memory.
Does not cover: making the vectors (encoder.py), indexing them (dense_index.py).
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import AliasChoices, Field

from flashrag.errors import UserError
from flashrag.retriever.index_card import JsonRecord
from flashrag.system.files import locked, staged

MANIFEST_NAME = "manifest.json"
ROWS_PER_BLOCK = 8192
SAMPLE_SEED = 20250325


class Embeddings:
    """(count, dimension) vectors in row order, spread over several memory-mapped arrays."""

    def __init__(self, parts: Sequence[Callable[[], np.ndarray]]) -> None:
        self._parts = parts  # opened one at a time: pages that were read leave memory with their array
        shapes = [part().shape for part in parts]
        self.count = sum(rows for rows, _ in shapes)
        self.dimension = shapes[0][1]
        assert {dimension for _, dimension in shapes} == {self.dimension}, "parts of different dimensions"

    def blocks(self, rows: int = ROWS_PER_BLOCK) -> Iterator[np.ndarray]:
        """float32 blocks of at most `rows` vectors, in order."""
        for part in self._parts:
            array = part()
            for start in range(0, len(array), rows):
                yield np.ascontiguousarray(array[start : start + rows], dtype=np.float32)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 vectors of the given rows, which must ascend."""
        wanted = np.asarray(numbers)
        found, first = [], 0
        for part in self._parts:
            array = part()
            start, stop = np.searchsorted(wanted, [first, first + len(array)])
            found.append(array[wanted[start:stop] - first].astype(np.float32, copy=False))
            first += len(array)
        return np.ascontiguousarray(np.concatenate(found))

    def sample(self, size: int) -> np.ndarray:
        """`size` vectors drawn without replacement, the same ones every time; all of them where there are fewer."""
        number = min(size, self.count)
        chosen = np.random.default_rng(SAMPLE_SEED).choice(self.count, number, replace=False, shuffle=False)
        return self.rows(np.sort(chosen))


class Manifest(JsonRecord):
    """Every setting on which the vectors depend."""

    corpus_sha256: str
    count: int
    model_sha256: str
    pooling: str
    passage_instruction: str
    max_length: int
    use_fp16: bool
    dtype: str
    part_size: int = Field(validation_alias=AliasChoices("part_size", "shard_size"))  # the latter in earlier versions


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder of parts, or None where it has none."""
    path = folder / MANIFEST_NAME
    return (
        Manifest.read(path, "the manifest", f"remove the folder {folder} to encode again") if path.is_file() else None
    )


def refuse_other_vectors(
    folder: Path, found: Manifest, wanted: Manifest, remedy: str, ignored: Iterable[str] = ()
) -> None:
    """Raise UserError naming every value in which two manifests differ, except the `ignored` ones."""
    differences = [
        f"{name} is {getattr(found, name)!r} there, but {getattr(wanted, name)!r} here"
        for name in Manifest.model_fields
        if name not in ignored and getattr(found, name) != getattr(wanted, name)
    ]
    if differences:
        raise UserError(
            f"{folder} holds the vectors of another run: {'; '.join(differences)}; "
            f"give that run's corpus, encoder and flags, {remedy}"
        )


class PartFolder:
    """A folder of parts under one manifest, some of them still to be written."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        count, size = manifest.count, manifest.part_size
        self.rows = [range(start, min(start + size, count)) for start in range(0, count, size)]  # of each part

    def missing(self) -> list[int]:
        return [number for number in range(len(self.rows)) if not self._is_whole(number)]

    def write(self, number: int, dimension: int, blocks: Iterable[np.ndarray]) -> None:
        """Write one part from float32 blocks that together have its rows; it appears when it is whole."""
        dtype = np.dtype(self.manifest.dtype)
        header = {"descr": dtype.str, "fortran_order": False, "shape": (len(self.rows[number]), dimension)}
        with staged(self._file(number)) as new, new.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:  # plain writes: a full disk raises an error; with a memory map it would be a SIGBUS
                file.write(np.ascontiguousarray(block, dtype=dtype).data)

    def embeddings(self) -> Embeddings:
        missing = self.missing()
        if missing:
            raise UserError(
                f"{self.path} holds {len(self.rows) - len(missing)} of {len(self.rows)} parts; "
                "finish it first: the command that began it resumes at the first missing part"
            )
        return Embeddings([partial(_open_part, self._file(number)) for number in range(len(self.rows))])

    def _file(self, number: int) -> Path:
        return self.path / f"{number:05d}.npy"

    def _is_whole(self, number: int) -> bool:
        try:
            array = _open_part(self._file(number))
        except (OSError, ValueError):  # absent, or cut short by a crash of the machine
            return False
        return len(array) == len(self.rows[number]) and array.dtype == np.dtype(self.manifest.dtype)


@contextmanager
def open_parts(folder: Path, manifest: Manifest) -> Iterator[PartFolder]:
    """The parts in `folder`, new or from an interrupted run; the folder is locked until the block ends.

    Raises UserError if the folder holds other vectors or another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            found = read_manifest(folder) if _has_parts(folder) else None
            if found is None:
                with staged(folder / MANIFEST_NAME) as new:
                    manifest.write(new)
            else:
                refuse_other_vectors(folder, found, manifest, f"or remove {folder} to encode again")
            try:
                yield PartFolder(folder, manifest)
            finally:
                if folder.exists() and not _has_parts(folder):
                    shutil.rmtree(folder)
    except BlockingIOError as error:
        raise UserError(f"{folder}: another build is at work there; wait for it, or give another --save_dir") from error


def _has_parts(folder: Path) -> bool:
    return any(folder.glob("*.npy"))


def read_embeddings(path: Path, count: int, dimension: int) -> Embeddings:
    """The vectors in a .npy file, or in a raw float32 file as FlashRAG saves one; raises UserError."""
    part = partial(_open_part, path) if path.suffix == ".npy" else partial(_open_raw, path, dimension)
    wanted = f"{count} passages in the corpus, {dimension} dimensions of the encoder"
    try:
        array = part()
    except (OSError, ValueError) as error:
        kind = ".npy" if path.suffix == ".npy" else "raw float32"
        raise UserError(
            f"--embedding_path: {path} is not a readable {kind} file ({error}); expected {wanted}"
        ) from error
    if array.shape != (count, dimension) or array.dtype not in (np.float32, np.float16):
        raise UserError(
            f"--embedding_path: {path} holds {array.dtype} of shape {array.shape}, expected float32 or float16 of "
            f"shape {(count, dimension)}: {wanted}; give vectors of this corpus and encoder"
        )
    return Embeddings([part])


def _open_part(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2:
        raise ValueError(f"an array of shape {array.shape} instead of (count, dimension)")
    return array


def _open_raw(path: Path, dimension: int) -> np.ndarray:
    return np.memmap(path, np.float32, "r").reshape(-1, dimension)
