"""The text of a search result: made harmless, rendered, and fitted into a token budget.

A passage is foreign text. It must never become a special token of the tokenizer, a live tag of the protocol, or an
encoding error. So control characters are dropped, and a tag or the string of a special token gets a space after its
first character: it stays readable but is no longer live. The dialect formats the result (dialect.py).
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from flashrag.document import Document
from flashrag.episode.dialect import RESEARCH, Dialect

NO_RESULTS = "No results found."
# Unicode's category Cc except tab and line break.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# A longer passage is cut before it is tokenized, because it would not fit into a rollout anyway.
MAX_PASSAGE_CHARS = 20_000
# A cut searches at most this many characters back for the end of a token.
MAX_TOKEN_CHARS = 64


class SplicedResult(NamedTuple):
    """A rendered result and its token ids."""

    text: str
    token_ids: list[int]


@lru_cache(maxsize=16)
def _live_text(special_tokens: tuple[str, ...], tags: tuple[str, ...]) -> re.Pattern[str]:
    # A one-character token cannot be broken, and breaking could create a token that contains a space. Encoding without
    # special tokens (episode.py) handles both. A break never creates one of the other strings, so the loop below ends.
    breakable = (token for token in special_tokens if len(token) > 1 and not re.search(r"\s", token))
    literals = sorted((re.escape(token) for token in [*tags, *breakable]), key=len, reverse=True)
    return re.compile("|".join(literals))


def neutralize(text: str, special_tokens: tuple[str, ...] = (), dialect: Dialect = RESEARCH) -> str:
    """The text without live tags, special tokens, control characters and unpaired surrogates.

    >>> neutralize("a</result>b<|endoftext|>", ("<|endoftext|>",))
    'a< /result>b< |endoftext|>'
    """
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    text = _CONTROL.sub("", text)
    text = _break(text, pattern := _live_text(special_tokens, dialect.tags))
    # A tokenizer that folds look-alikes ("＜" to "<") could create a live tag.
    if not text.isascii() and pattern.search(folded := unicodedata.normalize("NFKC", text)):
        text = _break(folded, pattern)
    return text


def _break(text: str, pattern: re.Pattern[str]) -> str:
    # Overlapping matches (special tokens "AB" and "BC" in "ABC") need another pass.
    while pattern.search(text):
        text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text


def fit_result(
    documents: Sequence[Document],
    encode: Callable[[str], list[int]],
    max_tokens: int,
    special_tokens: tuple[str, ...] = (),
    dialect: Dialect = RESEARCH,
) -> SplicedResult | None:
    """Render documents into at most `max_tokens` tokens; None if not even an empty result fits.

    Whole documents are dropped from the end first; if the first one alone is too long, it is cut at the end of a token.
    The tags are always intact. Without documents, the result is `NO_RESULTS`.
    """
    harmless = [
        Document(document.id, neutralize(document.contents[:MAX_PASSAGE_CHARS], special_tokens, dialect))
        for document in documents
    ]
    for count in range(len(harmless), 0, -1):
        spliced = _splice(dialect.render_passages(harmless[:count]), encode, dialect)
        if len(spliced.token_ids) <= max_tokens:
            return spliced
    if not harmless:
        return fit_notice(NO_RESULTS, encode, max_tokens, dialect)
    return _cut(dialect.render_passages(harmless[:1]), encode, max_tokens, dialect)


def fit_notice(
    message: str, encode: Callable[[str], list[int]], max_tokens: int, dialect: Dialect = RESEARCH
) -> SplicedResult | None:
    """Render a message to the model as a result; None if it does not fit into `max_tokens` tokens."""
    spliced = _splice(neutralize(message, dialect=dialect), encode, dialect)
    return spliced if len(spliced.token_ids) <= max_tokens else None


def _splice(body: str, encode: Callable[[str], list[int]], dialect: Dialect) -> SplicedResult:
    text = dialect.render_result(body)
    return SplicedResult(text, encode(text))


def _cut(passage: str, encode: Callable[[str], list[int]], max_tokens: int, dialect: Dialect) -> SplicedResult | None:
    """The longest prefix of a passage that fits and ends with one of its tokens; None if the bare tags do not fit.

    Bisects over characters, then goes back to the end of a token of the whole passage, so that no token is cut in half.
    """
    best, low, high = None, 0, len(passage)
    while low <= high:
        middle = (low + high) // 2
        spliced = _splice(passage[:middle], encode, dialect)
        if len(spliced.token_ids) <= max_tokens:
            best, low = spliced, middle + 1
        else:
            high = middle - 1
    whole = encode(dialect.open_result(passage))
    for end in range(high, max(high - MAX_TOKEN_CHARS, 0), -1):
        head = encode(dialect.open_result(passage[:end]))
        if head == whole[: len(head)]:
            spliced = _splice(passage[:end], encode, dialect)
            return spliced if len(spliced.token_ids) <= max_tokens else best
    return best
