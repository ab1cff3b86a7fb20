r"""The search protocol: the answer and the format rule. Written once, for training and evaluation.

A response is `<think>…</think>` blocks, calls like `<search>query</search>` that are each followed by a spliced
`<result>…</result>`, and one final `<answer>… \boxed{…} …</answer>`. Everything here is judged on the text that the
model itself wrote: what a result contains never counts. Reading a call is `flashrag.tools`' part, rendering a result
`flashrag.episode.result`'s. The tags are those of the trained dialect.

Source: the published description of the ReSearch pilot (prompt and reward).
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache

from flashrag.episode.dialect import RESEARCH

SEARCH_CLOSE = RESEARCH.search.close
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
SEARCH_ONLY = ("search",)

_BOXED = "\\boxed{"
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")


class FormatFault(StrEnum):
    """Why a response breaks the format rule."""

    NOT_ENDED = "the response did not end by itself"
    UNPAIRED_TAG = "a tag is not opened and closed in order"
    WRITTEN_RESULT = "the model wrote a result tag itself"
    NO_THINK = "there is no think block"
    SEARCH_WITHOUT_RESULT = "a call is not followed by its result"
    NO_ANSWER = "there is no answer block"
    ANSWER_NOT_LAST = "something follows the answer block"
    NO_BOXED_ANSWER = "the answer block has no \\boxed{…}"


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


@lru_cache(maxsize=16)
def tag_pattern(calls: tuple[str, ...] = SEARCH_ONLY) -> re.Pattern[str]:
    """Finds the tags that the format rule knows, where tools of these names can be called."""
    return re.compile(rf"<(?P<closing>/?)(?P<name>{'|'.join(('think', 'result', 'answer', *calls))})>")


def find_format_fault(
    sampled_texts: Sequence[str], *, ended_by_itself: bool, calls: tuple[str, ...] = SEARCH_ONLY
) -> FormatFault | None:
    """The first fault of a response in the format rule, None when it is valid.

    `sampled_texts` are the segments that the model wrote, in order, without the end-of-sequence token; a result was
    spliced after each of them but the last. `ended_by_itself` is whether the model sampled the end of sequence, `calls`
    the names of the tools that it could call.
    """
    if not ended_by_itself:
        return FormatFault.NOT_ENDED
    names: list[str] = []
    for index, text in enumerate(sampled_texts):
        blocks = _paired_tags(text, calls)
        if isinstance(blocks, FormatFault):
            return blocks
        followed_by_result = index < len(sampled_texts) - 1
        called = sum(block in calls for block in blocks)
        if called != followed_by_result or (followed_by_result and blocks[-1] not in calls):
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


def _paired_tags(text: str, calls: tuple[str, ...]) -> list[str] | FormatFault:
    """The names of the blocks in one segment, in order; blocks do not nest and do not cross a spliced result."""
    names: list[str] = []
    open_name: str | None = None
    for tag in tag_pattern(calls).finditer(text):
        name, closing = tag["name"], bool(tag["closing"])
        if name == "result":
            return FormatFault.WRITTEN_RESULT
        if closing != (open_name is not None) or (closing and name != open_name):
            return FormatFault.UNPAIRED_TAG
        open_name = None if closing else name
        if closing:
            names.append(name)
    return FormatFault.UNPAIRED_TAG if open_name else names
