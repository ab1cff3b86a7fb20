"""The text of a search result: made harmless (foreign.py), rendered, and fitted into a token budget.

The dialect formats the result (dialect.py).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flashrag.document import Document
from flashrag.episode.dialect import RESEARCH, Dialect
from flashrag.episode.foreign import neutralize

NO_RESULTS = "No results found."
# A longer passage is cut before it is tokenized, because it would not fit into a rollout anyway.
MAX_PASSAGE_CHARS = 20_000
# A cut searches at most this many characters back for the end of a token.
MAX_TOKEN_CHARS = 64


class SplicedResult(NamedTuple):
    """A rendered result and its token ids."""

    text: str
    token_ids: list[int]


def fit_result(
    documents: Sequence[Document],
    encode: Callable[[str], list[int]],
    max_tokens: int,
    control_strings: tuple[str, ...] = (),
    dialect: Dialect = RESEARCH,
    note: str = "",
) -> SplicedResult | None:
    """Render documents into at most `max_tokens` tokens; None if not even tags and note fit.

    Whole documents are dropped from the end first; if the first one alone is too long, it is cut at the end of a token.
    The tags, and our own `note` below the documents, are always intact. Without documents, the result is `NO_RESULTS`.
    """
    harmless = [
        Document(document.id, neutralize(document.contents[:MAX_PASSAGE_CHARS], control_strings, dialect))
        for document in documents
    ]
    for count in range(len(harmless), 0, -1):
        spliced = _splice(dialect.render_passages(harmless[:count]), encode, dialect, note)
        if len(spliced.token_ids) <= max_tokens:
            return spliced
    if not harmless:
        return fit_notice(NO_RESULTS, encode, max_tokens, dialect, note)
    return _cut(dialect.render_passages(harmless[:1]), encode, max_tokens, dialect, note)


def fit_notice(
    message: str, encode: Callable[[str], list[int]], max_tokens: int, dialect: Dialect = RESEARCH, note: str = ""
) -> SplicedResult | None:
    """Render a message to the model, and a note below, as a result; None if it does not fit into `max_tokens`."""
    spliced = _splice(neutralize(message, dialect=dialect), encode, dialect, note)
    return spliced if len(spliced.token_ids) <= max_tokens else None


def _splice(body: str, encode: Callable[[str], list[int]], dialect: Dialect, note: str) -> SplicedResult:
    text = dialect.render_result(f"{body}{dialect.separator}{note}" if note else body)
    return SplicedResult(text, encode(text))


def _cut(
    passage: str, encode: Callable[[str], list[int]], max_tokens: int, dialect: Dialect, note: str
) -> SplicedResult | None:
    """The longest prefix of a passage that fits and ends with one of its tokens; None if tags and note do not.

    Bisects over characters, then goes back to the end of a token of the whole passage, so that no token is cut in half.
    """
    best, low, high = None, 0, len(passage)
    while low <= high:
        middle = (low + high) // 2
        spliced = _splice(passage[:middle], encode, dialect, note)
        if len(spliced.token_ids) <= max_tokens:
            best, low = spliced, middle + 1
        else:
            high = middle - 1
    whole = encode(dialect.open_result(passage))
    for end in range(high, max(high - MAX_TOKEN_CHARS, 0), -1):
        head = encode(dialect.open_result(passage[:end]))
        if head == whole[: len(head)]:
            spliced = _splice(passage[:end], encode, dialect, note)
            return spliced if len(spliced.token_ids) <= max_tokens else best
    return best
