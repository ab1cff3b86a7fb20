"""Documents in the shape of a FlashRAG corpus line, and how a model is shown them.

A corpus line is `{"id", "contents"}`, where `contents` is the title in double quotes, a line break, and the text.
Passages that do not follow the convention are legal: their first line is the title all the same.
Does not cover: reading a corpus (corpus.py).
"""

from dataclasses import dataclass
from typing import NamedTuple, Self


@dataclass(frozen=True, slots=True)
class Document:
    """A passage: `id` and `contents` are kept exactly as the corpus holds them.

    >>> document = Document(id="7", contents='"Zhou dynasty"\\nIt lasted longest.\\nIt ended in 256 BC.')
    >>> document.title, document.text
    ('Zhou dynasty', 'It lasted longest.\\nIt ended in 256 BC.')
    """

    id: str
    contents: str

    @property
    def title(self) -> str:
        """The first line, without the pair of quotes around it (a lone quote stays)."""
        line = self.contents.partition("\n")[0]
        return line[1:-1] if len(line) >= 2 and line[0] == line[-1] == '"' else line

    @property
    def text(self) -> str:
        """Everything after the first line break; empty where there is none."""
        return self.contents.partition("\n")[2]


class Hit(NamedTuple):
    """A document that a retriever found, with its score (inner product, BM25, fused or reranked; higher is better)."""

    document: Document
    score: float


@dataclass(frozen=True, slots=True)
class Passage(Document):
    """A document that was given to a model; `score` is None where nothing ranked it."""

    score: float | None = None

    @classmethod
    def of(cls, hit: Hit) -> Self:
        return cls(hit.document.id, hit.document.contents, hit.score)


def numbered(number: int, document: Document) -> str:
    r"""One line for one passage, as FlashRAG and Search-R1 show it; the title is the first line as the corpus has it.

    >>> numbered(2, Document("7", '"Zhou dynasty"\nIt lasted longest.'))
    'Doc 2(Title: "Zhou dynasty") It lasted longest.'
    """
    title, _, text = document.contents.partition("\n")
    return f"Doc {number}(Title: {title}) {text}"


def whole(_: int, document: Document) -> str:
    """A passage as the corpus holds it."""
    return document.contents
