"""Findings about a file of questions, whichever command reads it: what was left out, and what is there twice."""

from collections import Counter
from collections.abc import Iterable, Iterator

from flashrag.preflight.findings import Finding, note, warning
from flashrag.questions import RECORDS, Question, QuestionFile, same_question_key


def question_findings(file: QuestionFile, used: Iterable[Question] | None = None) -> Iterator[Finding]:
    """Findings about a file of which the questions `used` are wanted, by default all."""
    if file.left_out:
        yield note(f"{file.path}: left out {file.left_out} ({file.counts[RECORDS]} records in all)")
    times = Counter(same_question_key(q.question) for q in (file.questions if used is None else used))
    if repeated := times.total() - len(times):
        yield warning(
            f"{file.path}: {repeated} of {times.total()} questions have the text of an earlier one; each counts in "
            "every mean: remove them unless that is meant"
        )
