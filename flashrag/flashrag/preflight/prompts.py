"""Findings about the prompt of a search episode, whichever command asks it."""

from collections.abc import Iterator
from pathlib import Path

from flashrag.episode import Dialect
from flashrag.preflight.findings import Finding, warning
from flashrag.prompts import ChosenPrompt, read_record


def prompt_findings(
    prompt: ChosenPrompt, apply_chat: bool, dialect: Dialect, model: Path | None, remedy: str
) -> Iterator[Finding]:
    """`model` is the folder of the model or checkpoint that will be asked, None if it is none of this machine's."""
    blocks = (dialect.search, *((dialect.answer,) if dialect.answer else ()))
    words = prompt.template.words
    if prompt.file and (unnamed := [tag.open for tag in blocks if tag.open not in words]):
        yield warning(
            f"{prompt.file} never names {', '.join(unnamed)}, by which the model is to search and answer here: is it a "
            "prompt of another method?"
        )
    trained, now = read_record(model) if model else None, prompt.record(apply_chat)
    if trained and trained.sha256 != now.sha256:
        yield warning(f"{model}: the model was trained with the prompt {trained}, and is asked with {now}; {remedy}")
