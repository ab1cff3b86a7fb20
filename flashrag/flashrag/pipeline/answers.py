"""Where a text's answer stands, and where its sentences end: the same rules for every method."""

import re
from typing import Any

from flashrag.pipeline.settings import PipelineSettings

SHORT_ANSWER_TOKENS = 128

_MARKER = re.compile(r"\b(?:final )?answer is:?\s*", re.IGNORECASE)
# An initial ("J. R. R.") and a title ("Dr.") do not end a sentence; neither does the point in "3.5".
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\bvs)[.!?][\"')\]]*(?=\s|$)|\n"
)


def answer_stops(settings: PipelineSettings) -> tuple[str, ...]:
    """A base model goes on after its answer, in a line of its own; an instruct model ends its turn."""
    return () if settings.apply_chat else ("\n",)


def answer_limits(settings: PipelineSettings) -> dict[str, Any]:
    """What bounds a short answer: a base model that finds no end is stopped, an instruct model may think first."""
    return {} if settings.apply_chat else {"stop": answer_stops(settings), "max_tokens": SHORT_ANSWER_TOKENS}


def short_answer(text: str) -> str:
    """The whole of a reply that was asked for the answer alone."""
    return text.strip()


def marked_answer(text: str) -> str | None:
    """What follows the last "answer is" of a chain of thought, to the end of its line; None where there is no marker.

    >>> marked_answer("Wu came first. So the answer is: King Wu.")
    'King Wu'
    """
    matches = list(_MARKER.finditer(text))
    if not matches:
        return None
    return text[matches[-1].end() :].partition("\n")[0].strip().removesuffix(".").strip()


def cued_answer(text: str) -> str:
    """What was written right behind "the answer is:".

    >>> cued_answer(" J. R. R. Tolkien. He was a don.")
    'J. R. R. Tolkien'
    """
    return first_sentence(text).strip().removesuffix(".").strip()


def first_sentence(text: str) -> str:
    """The beginning of a text up to the end of its first sentence, white space before it kept.

    >>> first_sentence(" J. R. R. Tolkien wrote it. He was a don.")
    ' J. R. R. Tolkien wrote it.'
    """
    begin = len(text) - len(text.lstrip())
    match = _SENTENCE_END.search(text, begin)
    return text[: match.end()].rstrip("\n") if match else text
