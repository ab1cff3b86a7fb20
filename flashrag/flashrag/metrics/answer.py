"""Answer metrics under SQuAD's normalisation; the gold answer that gives the best score counts.

Sources: the official SQuAD v1.1 evaluation script (Rajpurkar et al., 2016, arXiv 1606.05250) for normalisation, exact
match and F1; HotpotQA's official scorer (Yang et al., 2018, arXiv 1809.09600), which takes these over and adds a rule
for yes/no; FlashRAG (arXiv 2405.13576) for accuracy, and for precision and recall with several gold answers.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})
_YES_OR_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


class AnswerScore(NamedTuple):
    """The scores of one prediction against its gold answers, each in [0, 1]."""

    em: float
    f1: float
    acc: float


class _Overlap(NamedTuple):
    precision: float
    recall: float
    f1: float


def normalize_answer(text: str) -> str:
    """Lower-case, drop ASCII punctuation and English articles, squeeze white space.

    >>> normalize_answer("The  King, of (Zhou)!")
    'king of zhou'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold_answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals a normalised gold answer, else 0.0; an empty prediction never does."""
    normalized = normalize_answer(prediction)
    return float(bool(normalized) and any(normalized == normalize_answer(gold) for gold in gold_answers))


def f1_score(prediction: str, gold_answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall against one gold answer, the best over the gold answers."""
    return max((overlap.f1 for overlap in _overlaps(prediction, gold_answers)), default=0.0)


def precision_score(prediction: str, gold_answers: Sequence[str]) -> float:
    """Share of the prediction's normalised words that are also in a gold answer, the best over the gold answers."""
    return max((overlap.precision for overlap in _overlaps(prediction, gold_answers)), default=0.0)


def recall_score(prediction: str, gold_answers: Sequence[str]) -> float:
    """Share of a gold answer's normalised words that are also in the prediction, the best over the gold answers."""
    return max((overlap.recall for overlap in _overlaps(prediction, gold_answers)), default=0.0)


def _overlaps(prediction: str, gold_answers: Sequence[str]) -> list[_Overlap]:
    normalized = normalize_answer(prediction)
    return [_overlap(normalized, normalize_answer(gold)) for gold in gold_answers]


def _overlap(prediction: str, gold: str) -> _Overlap:
    # HotpotQA's rule: a yes/no answer is right or wrong, never partly right.
    if prediction != gold and {prediction, gold} & _ALL_OR_NOTHING:
        return _Overlap(0.0, 0.0, 0.0)
    predicted_words, gold_words = prediction.split(), gold.split()
    shared = (Counter(predicted_words) & Counter(gold_words)).total()  # a word counts as often as it occurs in both
    if not shared:
        return _Overlap(0.0, 0.0, 0.0)
    precision, recall = shared / len(predicted_words), shared / len(gold_words)
    return _Overlap(precision, recall, 2 * precision * recall / (precision + recall))


def cover_exact_match(prediction: str, gold_answers: Sequence[str]) -> float:
    """1.0 when a normalised gold answer is a substring of the normalised prediction (FlashRAG's rule for `acc`)."""
    normalized = normalize_answer(prediction)
    return float(any(gold and gold in normalized for gold in map(normalize_answer, gold_answers)))


def yes_no_accuracy(prediction: str, gold_answers: Sequence[str]) -> float | None:
    """1.0 if the prediction's first normalised word is the same yes or no as a gold answer; None if no gold answer is.

    `true` counts as yes and `false` as no, in both. A prediction that starts with neither is wrong.

    >>> yes_no_accuracy("No, it could not.", ["no"]), yes_no_accuracy("It is", ["yes"]), yes_no_accuracy("Wu", ["Wu"])
    (1.0, 0.0, None)
    """
    verdicts = {_YES_OR_NO.get(normalize_answer(gold)) for gold in gold_answers} - {None}
    if not verdicts:
        return None
    first_word = normalize_answer(prediction).partition(" ")[0]
    return float(_YES_OR_NO.get(first_word) in verdicts)


def score_answer(prediction: str, gold_answers: Sequence[str]) -> AnswerScore:
    """Exact match, F1 and accuracy of one prediction, as training and its reward report them."""
    return AnswerScore(
        em=exact_match(prediction, gold_answers),
        f1=f1_score(prediction, gold_answers),
        acc=cover_exact_match(prediction, gold_answers),
    )
