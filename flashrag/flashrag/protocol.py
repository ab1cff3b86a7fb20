r"""The search protocol: its tags, the query, the answer and the format rule. Written once, for training and evaluation.

A response is `<think>…</think>` blocks, searches `<search>query</search>` that are each followed by a spliced
`<result>…</result>`, and one final `<answer>… \boxed{…} …</answer>`. Everything here is judged on the text that the
model itself wrote: what a result contains never counts. Rendering a result is `flashrag.result`'s part.

The tags are those of the trained dialect; only the query is read in any dialect (dialect.py).

Source: the published description of the ReSearch pilot (prompt and reward).
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from flashrag.dialect import RESEARCH, Dialect

SEARCH_CLOSE = RESEARCH.search.close
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAG = re.compile(r"<(?P<closing>/?)(?P<name>think|search|result|answer)>")

# Longer than any sensible query, and below the retrieval server's own limit: what is longer is the model's mistake.
MAX_QUERY_CHARS = 1000

_BOXED = "\\boxed{"
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")


class QueryFault(StrEnum):
    """Why a closed search carries no usable query; `told_in` is what the model reads as its result."""

    UNOPENED = "The search was closed without being opened. Write <search> query </search>."
    EMPTY = "The search query was empty."
    TOO_LONG = f"The search query was longer than {MAX_QUERY_CHARS} characters."

    def told_in(self, dialect: Dialect) -> str:
        return self.value.replace(RESEARCH.search.open, dialect.search.open).replace(SEARCH_CLOSE, dialect.search.close)


class FormatFault(StrEnum):
    """Why a response breaks the format rule."""

    NOT_ENDED = "the response did not end by itself"
    UNPAIRED_TAG = "a tag is not opened and closed in order"
    WRITTEN_RESULT = "the model wrote a result tag itself"
    NO_THINK = "there is no think block"
    SEARCH_WITHOUT_RESULT = "a search is not followed by its result"
    NO_ANSWER = "there is no answer block"
    ANSWER_NOT_LAST = "something follows the answer block"
    NO_BOXED_ANSWER = "the answer block has no \\boxed{…}"


class Query(NamedTuple):
    """The query of a closed search, or the reason why there is none."""

    text: str
    fault: QueryFault | None


def parse_query(sampled_text: str, dialect: Dialect = RESEARCH) -> Query | None:
    """The query of the first closed search in one sampled segment; None when no search was closed in it.

    >>> parse_query(" <think> x </think> <search> King Wu </search>")
    Query(text='King Wu', fault=None)
    """
    head, closed, _ = sampled_text.partition(dialect.search.close)
    if not closed:
        return None
    _, opened, query = head.rpartition(dialect.search.open)
    if not opened:
        return Query("", QueryFault.UNOPENED)
    query = query.strip()
    if not query:
        return Query("", QueryFault.EMPTY)
    if len(query) > MAX_QUERY_CHARS:
        return Query(query, QueryFault.TOO_LONG)
    return Query(query, None)


def extract_answer(sampled_text: str) -> str:
    r"""The content of the last `\boxed{…}` in the last answer block, "" when there is none.

    >>> extract_answer(r"<answer> The final answer is \[ \boxed{King {W}u} \] </answer>")
    'King {W}u'
    """
    return boxed_answer(answer_block(sampled_text))


def answer_block(text: str) -> str:
    """The content of the last answer block, "" when there is none."""
    _, opened, block = text.rpartition(ANSWER_OPEN)
    return block.partition(ANSWER_CLOSE)[0] if opened else ""


def boxed_answer(text: str) -> str:
    r"""The content of the last `\boxed{…}`, without LaTeX's text commands, "" when there is none."""
    boxed = _boxed_content(text)
    return _TEXT_COMMAND.sub(r"\1", boxed).strip() if boxed is not None else ""


def _boxed_content(text: str) -> str | None:
    _, opened, tail = text.rpartition(_BOXED)
    if not opened:
        return None
    depth = 1
    for position, character in enumerate(tail):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return tail[:position]
    return None


def find_format_fault(sampled_texts: Sequence[str], *, ended_by_itself: bool) -> FormatFault | None:
    """The first fault of a response in the format rule, None when it is valid.

    `sampled_texts` are the segments that the model wrote, in order, without the end-of-sequence token; a result was
    spliced after each of them but the last. `ended_by_itself` is whether the model sampled the end of sequence.
    """
    if not ended_by_itself:
        return FormatFault.NOT_ENDED
    names: list[str] = []
    for index, text in enumerate(sampled_texts):
        blocks = _paired_tags(text)
        if isinstance(blocks, FormatFault):
            return blocks
        followed_by_result = index < len(sampled_texts) - 1
        if blocks.count("search") != followed_by_result or (followed_by_result and blocks[-1] != "search"):
            return FormatFault.SEARCH_WITHOUT_RESULT
        names += blocks
    if "think" not in names:
        return FormatFault.NO_THINK
    if "answer" not in names:
        return FormatFault.NO_ANSWER
    after_answer = sampled_texts[-1].rpartition(ANSWER_CLOSE)[2]
    if names.count("answer") > 1 or names[-1] != "answer" or after_answer.strip():
        return FormatFault.ANSWER_NOT_LAST
    answer_block = sampled_texts[-1].rpartition(ANSWER_OPEN)[2].partition(ANSWER_CLOSE)[0]
    return None if _boxed_content(answer_block) is not None else FormatFault.NO_BOXED_ANSWER


def _paired_tags(text: str) -> list[str] | FormatFault:
    """The names of the blocks in one segment, in order; blocks do not nest and do not cross a spliced result."""
    names: list[str] = []
    open_name: str | None = None
    for tag in TAG.finditer(text):
        name, closing = tag["name"], bool(tag["closing"])
        if name == "result":
            return FormatFault.WRITTEN_RESULT
        if closing != (open_name is not None) or (closing and name != open_name):
            return FormatFault.UNPAIRED_TAG
        open_name = None if closing else name
        if closing:
            names.append(name)
    return FormatFault.UNPAIRED_TAG if open_name else names
