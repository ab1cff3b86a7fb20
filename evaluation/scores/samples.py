"""Several answers to a question: avg@n, pass@k and maj@n, with the question as the unit of the intervals.

pass@k is the unbiased estimator of Chen et al., 2021, arXiv 2107.03374: the probability that at least one of k answers,
drawn without replacement from the n, is right. maj@n is the probability that the answer with most votes is right
(self-consistency, Wang et al., 2022, arXiv 2203.11171): each answer is a vote for its text as a metric sees it
(flashrag.metrics), an empty or failed one has no vote, and a tie is drawn. Right is exact match.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import comb
from typing import Any, NamedTuple

from evaluation.scores.significance import bootstrap_mean
from flashrag.metrics import normalize_answer


class Answer(NamedTuple):
    text: str
    right: bool


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that at least one of k answers is right, drawn from n answers of which `right` are right.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return 1.0 - comb(n - right, k) / comb(n, k)


def majority_is_right(answers: Sequence[Answer]) -> float:
    """The probability that the answer with most votes is right; 0 if none has a vote."""
    votes = Counter(text for answer in answers if (text := normalize_answer(answer.text)))
    most = max(votes.values(), default=0)
    first = [text for text, count in votes.items() if count == most]
    right = {normalize_answer(answer.text) for answer in answers if answer.right}
    return sum(text in right for text in first) / len(first) if first else 0.0


def sample_figures(questions: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """avg@n, pass@k for k = 1, 2, 4, … and n, and maj@n, each with its interval over questions.

    Every question has n answers.
    """
    n = len(questions[0])
    right = [sum(answer.right for answer in answers) for answers in questions]
    values = {
        f"avg@{n}": [count / n for count in right],
        **{f"pass@{k}": [pass_at_k(n, count, k) for count in right] for k in _numbers(n)},
        f"maj@{n}": [majority_is_right(answers) for answers in questions],
    }
    return {name: bootstrap_mean(each)._asdict() for name, each in values.items()}


def _numbers(n: int) -> Iterator[int]:
    k = 1
    while k < n:
        yield k
        k *= 2
    yield n
