"""Answer metrics: exact match, F1 and accuracy (cover exact match) under SQuAD's normalisation.

The one definition that the training reward, the trainer's validation and the evaluation share. A prediction counts
against the best of its gold answers. Source: the official SQuAD v1.1 evaluation script (Rajpurkar et al., 2016,
arXiv 1606.05250), whose rules HotpotQA's scorer takes over.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerScore(NamedTuple):
    """How one prediction does against its gold answers; every value lies in [0, 1]."""

    em: float
    f1: float
    acc: float


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
    """Token-level F1 of the normalised texts, the best over the gold answers."""
    return max((_f1(normalize_answer(prediction), normalize_answer(gold)) for gold in gold_answers), default=0.0)


def _f1(prediction: str, gold: str) -> float:
    # HotpotQA's rule: a yes/no answer is right or wrong, never partly right.
    if prediction != gold and ({prediction, gold} & {"yes", "no", "noanswer"}):
        return 0.0
    predicted_tokens, gold_tokens = prediction.split(), gold.split()
    shared = (Counter(predicted_tokens) & Counter(gold_tokens)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted_tokens), shared / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def cover_exact_match(prediction: str, gold_answers: Sequence[str]) -> float:
    """1.0 when a normalised gold answer is a substring of the normalised prediction (FlashRAG's rule for `acc`)."""
    normalized = normalize_answer(prediction)
    golds = (normalize_answer(gold) for gold in gold_answers)
    return float(any(gold and gold in normalized for gold in golds))


def score_answer(prediction: str, gold_answers: Sequence[str]) -> AnswerScore:
    """All three metrics of one prediction."""
    return AnswerScore(
        em=exact_match(prediction, gold_answers),
        f1=f1_score(prediction, gold_answers),
        acc=cover_exact_match(prediction, gold_answers),
    )
