r"""The answer of a response and the format rule, shared by training and evaluation.

A response consists of think blocks, calls that are each followed by a spliced result, and one final answer block. Only
the model's own text is judged; the content of a result never counts. The dialect sets the tags, and whether the answer
is boxed. Does not cover: parsing calls (tool.py), rendering results (result.py).

Sources: the published description of the ReSearch pilot (prompt and reward); for a dialect with one step a turn, the
sequence check of Search-R1's version 0.3 (arXiv 2505.15117).
"""

import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

from flashrag.episode.dialect import Dialect, Tag

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
    NOT_ONE_STEP = "a turn is not one think block, then one call or the answer"
    NO_BOXED_ANSWER = "the answer block has no \\boxed{…}"


def find_answer(sampled_texts: Sequence[str], dialect: Dialect) -> str:
    r"""The final answer in the segments that the model wrote, "" if it gave none.

    The answer is in the last answer block of the last segment; if the dialect has no answer block, it may be anywhere.

    >>> from flashrag.episode.dialect import RESEARCH, SEARCH_R1
    >>> find_answer([r"<answer> The final answer is \[ \boxed{King {W}u} \] </answer>"], RESEARCH)
    'King {W}u'
    >>> find_answer(["<answer> King Wu </answer>"], SEARCH_R1)
    'King Wu'
    """
    if dialect.answer is None:
        text = "".join(sampled_texts)
    else:
        text = _last_block(sampled_texts[-1], dialect.answer) if sampled_texts else ""
    if not dialect.boxed:
        return text.strip()
    boxed = _boxed_content(text)
    return _TEXT_COMMAND.sub(r"\1", boxed).strip() if boxed is not None else ""


def _last_block(text: str, tag: Tag) -> str:
    _, opened, block = text.rpartition(tag.open)
    return block.partition(tag.close)[0] if opened else ""


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


def find_format_fault(sampled_texts: Sequence[str], dialect: Dialect, *, ended_by_itself: bool) -> FormatFault | None:
    """The first fault in the format of a response; None if it is valid or the dialect has no format rule.

    `sampled_texts` are the segments that the model wrote, in order, without the end-of-sequence token; a result was
    spliced in after each segment except the last. `ended_by_itself` is true if the model sampled the end of sequence,
    or closed its answer in a dialect that stops there.
    """
    answer = dialect.answer
    if answer is None:
        return None
    if not ended_by_itself:
        return FormatFault.NOT_ENDED
    blocks: list[Tag] = []
    for index, text in enumerate(sampled_texts):
        found = _paired_tags(text, dialect)
        if isinstance(found, FormatFault):
            return found
        followed_by_result = index < len(sampled_texts) - 1
        called = sum(block in dialect.calls for block in found)
        if called != followed_by_result or (followed_by_result and found[-1] not in dialect.calls):
            return FormatFault.SEARCH_WITHOUT_RESULT
        blocks += found
    counts = Counter(blocks)
    if not counts[dialect.think]:
        return FormatFault.NO_THINK
    if not counts[answer]:
        return FormatFault.NO_ANSWER
    # An engine that stops at the closing tag keeps the whole last token, which may hold more text after the tag.
    behind = "" if dialect.stops_at_answer else sampled_texts[-1].rpartition(answer.close)[2]
    if counts[answer] > 1 or blocks[-1] != answer or behind.strip():
        return FormatFault.ANSWER_NOT_LAST
    if dialect.one_step_a_turn and not all(_is_one_step(text, dialect) for text in sampled_texts):
        return FormatFault.NOT_ONE_STEP
    if dialect.boxed and _boxed_content(_last_block(sampled_texts[-1], answer)) is None:
        return FormatFault.NO_BOXED_ANSWER
    return None


def _is_one_step(text: str, dialect: Dialect) -> bool:
    """Whether a segment without other faults is one think block, then one other block; any text may follow."""
    before, _, thought = text.partition(dialect.think.open)
    parts = dialect.pattern.split(thought)  # thought, between, content of the other block, behind
    return len(parts) == 4 and not before.strip() and not parts[1].strip()


def _paired_tags(text: str, dialect: Dialect) -> list[Tag] | FormatFault:
    """The blocks of one segment, in order. A block may not contain another block or a spliced result."""
    blocks: list[Tag] = []
    current: Tag | None = None
    for match in dialect.pattern.finditer(text):
        tag = next(tag for tag in dialect.blocks if match[0] in tag)
        if tag == dialect.result:
            return FormatFault.WRITTEN_RESULT
        closing = match[0] == tag.close
        if closing != (current is not None) or (closing and tag != current):
            return FormatFault.UNPAIRED_TAG
        current = None if closing else tag
        if closing:
            blocks.append(tag)
    return FormatFault.UNPAIRED_TAG if current else blocks
