"""Documents in the format of a FlashRAG corpus line, and the formats in which a model reads them.

A corpus line is `{"id", "contents"}`, where `contents` is the title in double quotes, a line break, and the text.
A passage need not follow this convention: its first line counts as its title in any case.
Does not cover: reading a corpus (corpus.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

# Formats of a passage, for `render_passages`: exactly as in the corpus; and FlashRAG's and Search-R1's.
WHOLE = "{document.contents}"
NUMBERED = "Doc {number}(Title: {document.heading}) {document.text}"


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
    def heading(self) -> str:
        """The first line, exactly as in the corpus."""
        return self.contents.partition("\n")[0]

    @property
    def title(self) -> str:
        """The first line, without a pair of quotes around it (a single quote stays)."""
        line = self.heading
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


def render_passages(documents: Iterable[Document], form: str, separator: str) -> str:
    r"""Passages for a model: `form` with the {number} of each, from 1, and its {document}.

    >>> render_passages([Document("7", '"Zhou dynasty"\nIt lasted longest.')], NUMBERED, "\n")
    'Doc 1(Title: "Zhou dynasty") It lasted longest.'
    """
    return separator.join(form.format(number=number, document=document) for number, document in enumerate(documents, 1))
