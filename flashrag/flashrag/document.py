"""Documents in the format of a FlashRAG corpus line, and the formats in which a model reads them.

A corpus line is `{"id", "contents"}`, where `contents` is the title in double quotes, a line break, and the text.
A passage need not follow this convention: its first line counts as its title in any case.
Does not cover: reading a corpus (corpus.py).
"""

from dataclasses import dataclass
from typing import NamedTuple, Self


@dataclass(frozen=True, slots=True)
class Document:
    """A passage: `id` and `contents` exactly as in the corpus.

    >>> document = Document(id="7", contents='"Zhou dynasty"\\nIt lasted longest.\\nIt ended in 256 BC.')
    >>> document.title, document.text
    ('Zhou dynasty', 'It lasted longest.\\nIt ended in 256 BC.')
    """

    id: str
    contents: str

    @property
    def title(self) -> str:
        """The first line, without a pair of quotes around it (a single quote stays)."""
        line = self.contents.partition("\n")[0]
        return line[1:-1] if len(line) >= 2 and line[0] == line[-1] == '"' else line

    @property
    def text(self) -> str:
        """The text after the first line break; empty if there is none."""
        return self.contents.partition("\n")[2]


class Hit(NamedTuple):
    """A document that a retriever found, with its score (inner product, BM25, fused or reranked; higher is better)."""

    document: Document
    score: float


@dataclass(frozen=True, slots=True)
class Passage(Document):
    """A document that was given to a model; `score` is None if no retriever ranked it."""

    score: float | None = None

    @classmethod
    def of(cls, hit: Hit) -> Self:
        return cls(hit.document.id, hit.document.contents, hit.score)


def numbered(number: int, document: Document) -> str:
    r"""A passage in the format of FlashRAG and Search-R1; the title is the first line exactly as in the corpus.

    >>> numbered(2, Document("7", '"Zhou dynasty"\nIt lasted longest.'))
    'Doc 2(Title: "Zhou dynasty") It lasted longest.'
    """
    title, _, text = document.contents.partition("\n")
    return f"Doc {number}(Title: {title}) {text}"


def whole(_: int, document: Document) -> str:
    """A passage exactly as in the corpus."""
    return document.contents
