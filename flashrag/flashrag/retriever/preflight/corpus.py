"""A look at a corpus: up to `READ_BYTES` are read whole, of a larger file the beginning; nothing stays on the disk."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flashrag.corpus import CACHE_FOLDER, SCHEMA, Corpus, open_corpus, read_lines
from flashrag.errors import UserError
from flashrag.preflight import Finding, check_readable, gib, note
from flashrag.retriever.index_card import IndexCard

READ_BYTES = 32 << 20  # about a second
FIRST_LINES = 1000
SAMPLE_BYTES = 8 << 20  # by which the number of lines is estimated


class UnreadCorpus(Corpus):
    """Stands for a large corpus. Its fingerprint and number of passages are the card's, or else "" and estimated."""

    def __init__(self, path: Path, card: IndexCard | None) -> None:
        super().__init__(path, card.corpus_sha256 if card else "", SCHEMA.empty_table())
        self._count = card.count if card else _estimated_lines(path)

    def __len__(self) -> int:
        return self._count


def look_at_corpus(key: str, path: Path, card: IndexCard | None = None) -> Corpus:
    """The corpus, or what stands for a large one whose first lines are right; raises UserError.

    `card` is that of the index, which a large corpus is taken to be the corpus of.
    """
    check_readable(key, path)
    try:
        if not path.is_file() or path.stat().st_size <= READ_BYTES:
            with tempfile.TemporaryDirectory() as folder:  # the open table stays when its file is gone
                return open_corpus(path, Path(folder))
        for _ in itertools.islice(read_lines(path), FIRST_LINES):
            pass
        return UnreadCorpus(path, card)
    except OSError as problem:
        raise UserError(f"{key}: {path} cannot be read ({problem}); give another corpus") from problem


def _estimated_lines(path: Path) -> int:
    with path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
    return max(1, round(path.stat().st_size * sample.count(b"\n") / len(sample)))


def describe(corpus: Corpus) -> str:
    about = "about " if isinstance(corpus, UnreadCorpus) and not corpus.sha256 else ""
    return f"{about}{len(corpus):,} in {corpus.path}"


def unread(key: str, corpus: Corpus, when: str) -> Iterator[Finding]:
    if isinstance(corpus, UnreadCorpus):
        size = gib(corpus.path.stat().st_size)
        yield note(f"{key}: {corpus.path} ({size}) is looked at in its first {FIRST_LINES} lines; all are read {when}")


def cache_bytes(corpus: Corpus, folder: Path) -> int:
    """The disk for the corpus's copy in the folder of an index, 0 where it is there already."""
    cached = corpus.sha256 and (folder / CACHE_FOLDER / f"{corpus.sha256[:32]}.arrow").is_file()
    return 0 if cached else corpus.path.stat().st_size
