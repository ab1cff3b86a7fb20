"""Finds the answer and the sentences in a text, by the same rules for every method."""

import re
from typing import Any

from flashrag.pipeline.settings import PipelineSettings

SHORT_ANSWER_TOKENS = 128

_MARKER = re.compile(r"\b(?:final )?answer is:?\s*", re.IGNORECASE)
# The period of an initial ("J. R. R."), a title ("Dr.") or a number ("3.5") does not end a sentence.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\bvs)[.!?][\"')\]]*(?=\s|$)|\n"
)


def answer_stops(settings: PipelineSettings) -> tuple[str, ...]:
    """Stop strings for an answer: a base model goes on in a new line after it, an instruct model ends its turn."""
    return () if settings.apply_chat else ("\n",)


def answer_limits(settings: PipelineSettings) -> dict[str, Any]:
    """Limits for a short answer: a base model may not stop by itself, an instruct model may think first."""
    return {} if settings.apply_chat else {"stop": answer_stops(settings), "max_tokens": SHORT_ANSWER_TOKENS}


def short_answer(text: str) -> str:
    """The answer in a reply to a prompt that asked for the answer alone: the whole reply."""
    return text.strip()


def marked_answer(text: str) -> str | None:
    """The text from the last "answer is" of a chain of thought to the end of its line; None if there is no marker.

    >>> marked_answer("Wu came first. So the answer is: King Wu.")
    'King Wu'
    """
    matches = list(_MARKER.finditer(text))
    if not matches:
        return None
    return text[matches[-1].end() :].partition("\n")[0].strip().removesuffix(".").strip()


def cued_answer(text: str) -> str:
    """The answer in a text that continues "the answer is:".

    >>> cued_answer(" J. R. R. Tolkien. He was a don.")
    'J. R. R. Tolkien'
    """
    return first_sentence(text).strip().removesuffix(".").strip()


def first_sentence(text: str) -> str:
    """The beginning of a text up to the end of its first sentence, including the white space before it.

    >>> first_sentence(" J. R. R. Tolkien wrote it. He was a don.")
    ' J. R. R. Tolkien wrote it.'
    """
    begin = len(text) - len(text.lstrip())
    match = _SENTENCE_END.search(text, begin)
    return text[: match.end()].rstrip("\n") if match else text
