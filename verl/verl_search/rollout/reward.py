"""The reward of one episode, with its reason: format and answer, judged on the tokens that the model sampled.

Format invalid, or the episode did not end by itself: 0. Format valid, answer wrong: 0.1. Format valid, answer right: 1.
The answer is judged by a metric of `flashrag.metrics`: exact match (the pilot's) or F1 (the paper's, arXiv 2503.19470),
whose value is the reward of a valid answer that is partly right. The rule "answer" ignores the format and rewards the
answer alone, as in Search-R1 (arXiv 2503.09516).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from flashrag.episode import Episode
from flashrag.metrics import AnswerScore, score_answer

AnswerMetric = Literal["em", "f1"]
RewardRule = Literal["format_and_answer", "answer"]
FORMAT_ONLY_REWARD = 0.1


class Reward(NamedTuple):
    """The reward in [0, 1], its reason, and the answer's scores, which do not depend on the format."""

    value: float
    reason: str
    answer: AnswerScore


def episode_reward(
    episode: Episode,
    gold_answers: Sequence[str],
    metric: AnswerMetric = "em",
    rule: RewardRule = "format_and_answer",
) -> Reward:
    """Reward an episode against its gold answers."""
    scores = score_answer(episode.answer, gold_answers)
    fault = episode.format_fault
    if fault is not None and rule == "format_and_answer":
        return Reward(0.0, f"format: {fault.value} (end reason {episode.end_reason.value})", scores)
    correctness = scores.em if metric == "em" else scores.f1
    if correctness == 0.0:
        format_only = FORMAT_ONLY_REWARD if rule == "format_and_answer" else 0.0
        return Reward(format_only, f"wrong answer {episode.answer!r}", scores)
    return Reward(correctness, f"{metric} {correctness:.2f}: {episode.answer!r}", scores)
