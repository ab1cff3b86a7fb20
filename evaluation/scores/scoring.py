"""Scores: the metrics of one trajectory, and the summary of a run.

The denominator is every question of the run. A failed or missing question scores 0 in each metric that applies to it. A
metric is None for a question to which it does not apply (yes/no accuracy of a name, coverage without named support);
its mean leaves that question out and states its own n. Usage is averaged over answered questions only.

With several answers to a question, the question stays the unit: each metric is first averaged over its answers (avg@n),
and the intervals resample questions. pass@k and maj@n are samples.py's.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from evaluation.scores.samples import Answer, sample_figures
from evaluation.scores.significance import bootstrap_mean
from flashrag import metrics as rules
from flashrag.episode import Trajectory, Usage
from flashrag.reward import JUDGE, JudgeSettings, RewardFunction, rewarded

MISSING = "Missing"  # the error type of a question that was not asked yet
RECALL = "retrieval_recall"
REWARD = "reward"
_ANSWER_METRICS: Mapping[str, Callable[[str, Sequence[str]], float | None]] = {
    "em": rules.exact_match,
    "f1": rules.f1_score,
    "acc": rules.cover_exact_match,
    "precision": rules.precision_score,
    "recall": rules.recall_score,
    "yes_no_acc": rules.yes_no_accuracy,
}
METRICS = (*_ANSWER_METRICS, RECALL, "support_coverage", JUDGE)
USAGE = ("searches", "generator_calls", "prompt_tokens", "completion_tokens", "latency_s")


class Price(BaseModel):
    """Prices of tokens. With them, the summary has cost_usd per question and total_cost_usd for the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_usd_per_million: float = Field(ge=0, description="price of a million prompt tokens")
    completion_usd_per_million: float = Field(ge=0, description="price of a million sampled tokens")


class MetricSettings(BaseModel):
    """`metric_setting`: the settings of single metrics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retrieval_recall_topk: int = Field(5, ge=1, description="k of retrieval_recall")
    judge: JudgeSettings | None = Field(None, description="the model that decides llm_judge")
    price: Price | None = Field(None, description="prices of tokens; adds cost_usd to the summary")


def score_trajectory(
    trajectory: Trajectory, names: Sequence[str], settings: MetricSettings, verdict: bool | None = None
) -> dict[str, float | None]:
    """The metrics of one trajectory, with the names of the summary; `verdict` is the judge's, None if there is none."""
    gold_answers = trajectory.gold_answers
    scores: dict[str, float | None] = {}
    for name in names:
        if name in _ANSWER_METRICS:
            scores[name] = _ANSWER_METRICS[name](trajectory.answer, gold_answers)
        elif name == RECALL:
            top_k = settings.retrieval_recall_topk
            found = [[passage.contents for passage in call.passages] for call in trajectory.calls]
            scores[f"{RECALL}_top{top_k}"] = rules.answer_in_top_k(found, gold_answers, top_k)
        elif name == JUDGE:
            scores[JUDGE] = float(bool(verdict))
        else:
            scores[name] = _support_coverage(trajectory)
    return scores


def with_scores(
    trajectory: Trajectory, scores: Mapping[str, float | None], reward_of: RewardFunction | None = None
) -> Trajectory:
    """The trajectory with its scores, and its reward, which is one of them."""
    scored = replace(trajectory, metrics=scores, reward=None, reward_reason="")
    if reward_of is None:
        return scored
    scored = rewarded(scored, reward_of)
    return replace(scored, metrics={**scored.metrics, REWARD: scored.reward})


def _support_coverage(trajectory: Trajectory) -> float | None:
    found = [passage for call in trajectory.calls for passage in call.passages]
    return rules.support_coverage(trajectory.metadata, [p.id for p in found], [p.title for p in found])


def summarize(trajectories: Iterable[Trajectory], settings: MetricSettings) -> dict[str, Any]:
    """The summary of the scored trajectories of a run, in total and for each value of `metadata["hops"]`."""
    rows = [_Row.of(trajectory) for trajectory in trajectories]
    summary = _figures(rows, settings)
    by_hops: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        if row.hops is not None:
            by_hops[str(row.hops)].append(row)
    if by_hops:
        summary["by_hops"] = {hops: _figures(by_hops[hops], settings) for hops in sorted(by_hops)}
    return summary


class _Row(NamedTuple):
    """The part of a trajectory that a summary needs; whole trajectories would fill the memory of a long run."""

    question_id: str
    answer: str
    right: bool
    metrics: Mapping[str, float | None]
    usage: Usage
    end_reason: str
    error: str | None
    format_valid: bool | None
    hops: Any

    @classmethod
    def of(cls, trajectory: Trajectory) -> Self:
        t = trajectory
        error = t.error.type if t.error else None
        right = not t.failed and bool(rules.exact_match(t.answer, t.gold_answers))
        hops = t.metadata.get("hops")
        return cls(t.question_id, t.answer, right, t.metrics, t.usage, t.end_reason, error, t.format_valid, hops)


def _figures(rows: Sequence[_Row], settings: MetricSettings) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    by_question: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_question[row.question_id].append(row)
    for name in rows[0].metrics:
        means = (mean_of(row.metrics[name] for row in each) for each in by_question.values())
        values = [mean for mean in means if mean is not None]
        figures[name] = bootstrap_mean(values)._asdict() if values else None
    answers = [[Answer(row.answer, row.right) for row in each] for each in by_question.values()]
    return {
        "n": len(by_question),
        "n_failed": sum(row.error not in (None, MISSING) for row in rows),
        "n_missing": sum(row.error == MISSING for row in rows),
        "failures": dict(Counter(row.error for row in rows if row.error).most_common()),
        "end_reasons": dict(Counter(row.end_reason for row in rows).most_common()),
        "metrics": figures,
        **({"samples": sample_figures(answers)} if len(rows) > len(by_question) else {}),
        "usage": _usage([row.usage for row in rows if row.error is None], settings.price),
        **_format_rate(rows),
    }


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def means_by_question(trajectories: Iterable[Trajectory]) -> dict[str, dict[str, float | None]]:
    """The metrics of each question by its id: the means over its answers."""
    scores: dict[str, list[Mapping[str, float | None]]] = defaultdict(list)
    for trajectory in trajectories:
        scores[trajectory.question_id].append(trajectory.metrics)
    return {key: {name: mean_of(each[name] for each in all_) for name in all_[0]} for key, all_ in scores.items()}


def _format_rate(rows: Sequence[_Row]) -> dict[str, float]:
    """Share of all questions answered in the format of their dialect; {} for methods without a format rule."""
    if all(row.format_valid is None for row in rows):
        return {}
    return {"format_rate": sum(bool(row.format_valid) for row in rows) / len(rows)}


def _usage(usages: Sequence[Usage], price: Price | None) -> dict[str, float]:
    """Means over answered questions; with a price, also the cost per question and in total."""
    if not usages:
        return {}
    means = {name: sum(getattr(usage, name) for usage in usages) / len(usages) for name in USAGE}
    if price is not None:
        cost_usd = (
            means["prompt_tokens"] * price.prompt_usd_per_million
            + means["completion_tokens"] * price.completion_usd_per_million
        ) / 1e6
        means |= {"cost_usd": cost_usd, "total_cost_usd": cost_usd * len(usages)}
    return means
