"""What a tool gives back to the episode that called it."""

from collections.abc import Iterable
from typing import NamedTuple, Self

from flashrag.document import Document, Hit


class ToolResult(NamedTuple):
    """The documents for the model, best first, and a score for each where the tool ranks them."""

    documents: tuple[Document, ...]
    scores: tuple[float, ...] = ()

    @classmethod
    def ranked(cls, hits: Iterable[Hit]) -> Self:
        """What a search found."""
        documents, scores = zip(*hits, strict=True) if (hits := tuple(hits)) else ((), ())
        return cls(documents, scores)
