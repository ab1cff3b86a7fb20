"""The measures of one rollout, and their summary over a step: the trainer's `rollout/…` metrics.

Pure functions: the agent loop measures a rollout, the sampler summarises a step. docs/alarms.md explains the names.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from flashrag.episode import EndReason, Segment, Source, Trajectory
from flashrag.reward import JUDGE, TERM_PREFIX

NGRAM_WORDS = 4
_THINK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
# Thai, Lao, Burmese, Khmer, Chinese and Japanese have no spaces between words: each character counts as a word.
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")


def rollout_measures(trajectory: Trajectory) -> dict[str, float]:
    """The numbers of one rewarded episode that upstream averages over a validation and `rollout_metrics` over a step.

    The terms of its reward, and a judge's verdict, are among them.
    """
    searches = [call for call in trajectory.calls if call.tool == "search"]
    scores = {name: value for name, value in trajectory.metrics.items() if value is not None}
    return {
        "em": scores["em"],
        "f1": scores["f1"],
        "format_valid": float(trajectory.format_fault is None),
        "searches": float(len(searches)),
        "tool_calls": float(len(trajectory.calls)),
        "search_failed": float(trajectory.end_reason == EndReason.SEARCH_FAILED),
        "sampled_tokens": float(trajectory.usage.completion_tokens),
        "spliced_tokens": float(trajectory.usage.result_tokens),
        "search_s": sum(search.latency_s for search in searches),
        "generate_s": sum(end - start for start, end in trajectory.generate_spans),
        "think_repeat_rate": repeat_rate(think_words(segment.text for segment in _sampled(trajectory))),
        **{name: value for name, value in scores.items() if name == JUDGE or name.startswith(TERM_PREFIX)},
    }


def training_measures(trajectory: Trajectory) -> dict[str, Any]:
    """The other inputs of `rollout_metrics`; `log_prob_sum` is None where the engine gave no log-probabilities."""
    log_probs = [segment.log_probs for segment in _sampled(trajectory)]
    log_prob_sum = None if None in log_probs else sum(sum(values) for values in log_probs if values)
    return {
        "end_reason": str(trajectory.end_reason),
        "reward": trajectory.reward,
        "log_prob_sum": log_prob_sum,
        "generate_spans": trajectory.generate_spans,
    }


def _sampled(trajectory: Trajectory) -> Iterator[Segment]:
    return (segment for segment in trajectory.segments if segment.source is Source.MODEL)


def think_words(sampled_texts: Iterable[str]) -> list[str]:
    """The words of all think blocks that the model wrote; an unclosed block ends with its segment."""
    return [word for text in sampled_texts for block in _THINK.findall(text) for word in _WORD.findall(block)]


def repeat_rate(words: Sequence[str], n: int = NGRAM_WORDS) -> float:
    """The share of n-grams that occurred before.

    >>> repeat_rate("a b c d".split())
    0.0
    >>> round(repeat_rate("no no no no no no".split()), 3)  # three 4-grams, two of them repeat the first
    0.667
    """
    ngrams = list(zip(*(words[offset:] for offset in range(n)), strict=False))
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def rollout_metrics(rollouts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A step's means over its episodes, and the share of each end reason; times are seconds per episode.

    A rollout is its `rollout_measures` and `training_measures`, and the `group_id` of the question it was sampled for.
    `rollout/reward/<term>` is what a term adds to the reward. Without a correct answer there is no
    `rollout/correct_log_prob`.
    """

    def mean(name: str) -> float:
        return fmean(rollout[name] for rollout in rollouts)

    searches = sum(rollout["searches"] for rollout in rollouts)
    metrics = {
        "rollout/em": mean("em"),
        "rollout/f1": mean("f1"),
        "rollout/format_rate": mean("format_valid"),
        "rollout/searches": mean("searches"),
        "rollout/tool_calls": mean("tool_calls"),
        "rollout/search_failed_share": mean("search_failed"),
        "rollout/response_tokens_sampled": mean("sampled_tokens"),
        "rollout/response_tokens_spliced": mean("spliced_tokens"),
        "rollout/search_latency_s": sum(r["search_s"] for r in rollouts) / searches if searches else 0.0,
        "rollout/search_s": mean("search_s"),
        "rollout/generate_s": mean("generate_s"),
        "rollout/engine_busy_s": united_s(span for rollout in rollouts for span in rollout["generate_spans"]),
        "rollout/think_repeat_rate": mean("think_repeat_rate"),
        "rollout/zero_variance_share": zero_variance_share(rollouts),
        **{
            f"rollout/{name.replace(TERM_PREFIX, 'reward/')}": mean(name)
            for name in rollouts[0]
            if name == JUDGE or name.startswith(TERM_PREFIX)
        },
    }
    correct = [r for r in rollouts if r["em"] and r["format_valid"] and r["log_prob_sum"] is not None]
    if correct:
        tokens = sum(rollout["sampled_tokens"] for rollout in correct)
        metrics["rollout/correct_log_prob"] = sum(rollout["log_prob_sum"] for rollout in correct) / tokens
    end_reasons = Counter(rollout["end_reason"] for rollout in rollouts)
    # Every step has every reason: an alarm must see 0 for a reason that stops occurring.
    return metrics | {f"rollout/end_reason/{reason}": end_reasons[reason] / len(rollouts) for reason in EndReason}


def united_s(spans: Iterable[tuple[float, float]]) -> float:
    """The total length of the spans, overlaps counted once: the seconds in which the engines had work.

    >>> united_s([(0.0, 2.0), (1.0, 3.0), (10.0, 11.0)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def zero_variance_share(rollouts: Sequence[Mapping[str, Any]]) -> float:
    """The share of groups whose rewards are all equal: GRPO learns nothing from them.

    Episodes with a failed search are left out, as in the advantages. An empty group counts as a group of equal rewards.
    """
    rewards_by_group: dict[str, list[float]] = defaultdict(list)
    for rollout in rollouts:
        rewards_by_group[rollout["group_id"]] += [] if rollout["search_failed"] else [rollout["reward"]]
    return fmean(len(set(rewards)) <= 1 for rewards in rewards_by_group.values())
