"""Real questions, each used once: a cache that remembers answers must not make a server look faster than it is.

Reads FlashRAG's data sets (`{"question": …}` a line), plain or `.xz`.
"""

import itertools
import json
import lzma
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from flashrag.errors import UserError


def read_unique_questions(paths: Sequence[Path], seed: int) -> list[str]:
    """Every different question of the files, shuffled: their data sets differ in length. Raises UserError."""
    questions = dict.fromkeys(question for path in paths for question in _questions(path) if question.strip())
    if not questions:
        raise UserError(f"--questions: no questions in {', '.join(map(str, paths))}; give FlashRAG question files")
    shuffled = list(questions)
    random.Random(seed).shuffle(shuffled)
    return shuffled


class QuestionSupply:
    """Hands questions out, none of them twice; once all are used, numbered ones ("[2] who wrote …") follow."""

    def __init__(self, questions: Sequence[str]) -> None:
        numbered = (f"[{number}] {question}" for number in itertools.count(2) for question in questions)
        self._stream: Iterator[str] = itertools.chain(questions, numbered)

    def take(self, count: int) -> list[str]:
        return list(itertools.islice(self._stream, count))


def _questions(path: Path) -> Iterator[str]:
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield str(json.loads(line)["question"])
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f'--questions: {path} line {number} is no {{"question": …}} ({error!r:.80})'
                    ) from error
    except OSError as error:
        raise UserError(
            f"--questions: {path} cannot be read ({error.strerror}); give FlashRAG question files"
        ) from error
