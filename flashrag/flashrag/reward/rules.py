"""What a reward is, and the published rules: format and answer, judged on the tokens that the model sampled.

Format invalid, or the episode did not end by itself: 0. Format valid, answer wrong: 0.1. Format valid, answer right: 1.
The answer is judged by exact match (the pilot's) or F1 (the paper's, arXiv 2503.19470), whose value is the reward of a
valid answer that is partly right. The rule "answer" ignores the format and rewards the answer alone, as in Search-R1
(arXiv 2503.09516). The rule "structured_answer" is that of its version 0.3 (arXiv 2505.15117): an invalid format takes
0.2 from a right answer; a wrong one gets 0.2 in a valid format, else 0.1; no answer in an invalid format gets 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, NamedTuple

from flashrag.episode import FormatFault, Trajectory
from flashrag.metrics import score_answer

AnswerMetric = Literal["em", "f1"]
RewardRule = Literal["format_and_answer", "answer", "structured_answer"]
FORMAT_ONLY_REWARD = 0.1
STRUCTURE_REWARD, ANSWER_ONLY_REWARD = 0.2, 0.1
TERM_PREFIX = "reward_"  # of a term's name among the metrics of a trajectory


class Reward(NamedTuple):
    """The reward, its reason, and what each term adds to it, if it is a sum of terms."""

    value: float
    reason: str
    terms: Mapping[str, float] = MappingProxyType({})


RewardFunction = Callable[[Trajectory, Sequence[str]], Reward]


def rewarded(trajectory: Trajectory, reward_of: RewardFunction) -> Trajectory:
    """The trajectory with its reward, the reason, and the terms among its metrics."""
    reward = reward_of(trajectory, trajectory.gold_answers)
    terms = {f"{TERM_PREFIX}{name}": value for name, value in reward.terms.items()}
    metrics = {**trajectory.metrics, **terms}
    return replace(trajectory, reward=reward.value, reward_reason=reward.reason, metrics=metrics)


def rule_reward(
    trajectory: Trajectory,
    gold_answers: Sequence[str],
    metric: AnswerMetric = "em",
    rule: RewardRule = "format_and_answer",
) -> Reward:
    """The reward by one of the published rules."""
    answer, fault = trajectory.answer, trajectory.format_fault
    if fault is not None and rule == "format_and_answer":
        return Reward(0.0, f"format: {FormatFault[fault.upper()].value} (end reason {trajectory.end_reason})")
    scores = score_answer(answer, gold_answers)
    correctness = scores.em if metric == "em" else scores.f1
    if rule == "structured_answer":
        value = _structured_reward(correctness, fault is None, bool(answer))
        return Reward(value, f"{metric} {correctness:.2f}, {fault or 'format valid'}: {answer!r}")
    if correctness == 0.0:
        return Reward(FORMAT_ONLY_REWARD if rule == "format_and_answer" else 0.0, f"wrong answer {answer!r}")
    return Reward(correctness, f"{metric} {correctness:.2f}: {answer!r}")


def _structured_reward(correctness: float, valid: bool, answered: bool) -> float:
    if valid:
        return max(correctness, STRUCTURE_REWARD)
    return max(correctness - STRUCTURE_REWARD, ANSWER_ONLY_REWARD * answered)
