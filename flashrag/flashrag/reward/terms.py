"""The built-in terms of a reward, and their weighted sum."""

from collections.abc import Callable, Mapping, Sequence

from flashrag.episode import Trajectory
from flashrag.metrics import answer_in_top_k, cover_exact_match, exact_match, f1_score
from flashrag.reward.judge import JUDGE
from flashrag.reward.rules import Reward

Term = Callable[[Trajectory, Sequence[str]], float]


def _retrieval_hit(trajectory: Trajectory, gold_answers: Sequence[str]) -> float:
    found = [[passage.contents for passage in call.passages] for call in trajectory.calls if call.tool == "search"]
    return answer_in_top_k(found, gold_answers) or 0.0


JUDGE_TERM = "judge"
# docs/training.md has this table for users.
TERMS: Mapping[str, Term] = {
    "em": lambda trajectory, gold_answers: exact_match(trajectory.answer, gold_answers),
    "f1": lambda trajectory, gold_answers: f1_score(trajectory.answer, gold_answers),
    "cover_em": lambda trajectory, gold_answers: cover_exact_match(trajectory.answer, gold_answers),
    "format": lambda trajectory, _: float(bool(trajectory.format_valid)),
    "retrieval_hit": _retrieval_hit,
    "searches": lambda trajectory, _: float(trajectory.usage.searches),
    "length": lambda trajectory, _: trajectory.usage.completion_tokens / 1000,
    JUDGE_TERM: lambda trajectory, _: trajectory.metrics[JUDGE] or 0.0,
}


def weighted_reward(trajectory: Trajectory, gold_answers: Sequence[str], weights: Mapping[str, float]) -> Reward:
    """The sum of the terms, each times its weight; the reason names what each adds."""
    # A cost of nothing is 0.0, not -0.0.
    terms = {name: weight * TERMS[name](trajectory, gold_answers) + 0.0 for name, weight in weights.items()}
    reason = ", ".join(f"{name} {value:+.3g}" for name, value in terms.items())
    return Reward(sum(terms.values()), f"{reason}: {trajectory.answer!r}", terms)
