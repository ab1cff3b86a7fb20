"""The one definition of a right answer, shared by the reward, the trainer's validation and the evaluation.

    answer.py     compares a prediction with its gold answers: EM, F1, precision, recall, accuracy, yes/no
    retrieval.py  checks whether the passages of the searches hold the answer and the supporting documents

Pure functions on plain values. Does not cover: intervals, significance and the judge (evaluation/scores).
"""

from flashrag.metrics.answer import (
    AnswerScore,
    cover_exact_match,
    exact_match,
    f1_score,
    normalize_answer,
    precision_score,
    recall_score,
    score_answer,
    yes_no_accuracy,
)
from flashrag.metrics.retrieval import (
    answer_in_top_k,
    holds_answer,
    named_support,
    support_coverage,
    supporting_documents,
    supporting_titles,
)

__all__ = [
    "AnswerScore",
    "answer_in_top_k",
    "cover_exact_match",
    "exact_match",
    "f1_score",
    "holds_answer",
    "named_support",
    "normalize_answer",
    "precision_score",
    "recall_score",
    "score_answer",
    "support_coverage",
    "supporting_documents",
    "supporting_titles",
    "yes_no_accuracy",
]
