"""Statistical uncertainty: bootstrap intervals of one run, and the paired test between two runs on the same questions.

Exact rules. Interval: scipy's percentile bootstrap over questions, 2,000 resamples, seed 0, 95 %. Comparison: scipy's
permutation test of paired samples (randomly swaps the two runs' scores of a question), two-sided, on the mean
difference, 9,999 permutations, seed 0; if there are fewer sign patterns (2**n), all of them are used (exact test).
McNemar's exact test of right and wrong answers is scipy's two-sided binomial test on the questions that differ.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

LEVEL = 0.95
N_RESAMPLES = 2_000
N_PERMUTATIONS = 9_999
_BATCH = 100  # resamples in memory at once: 100 x 12,576 questions are 10 MB


class Interval(NamedTuple):
    """A mean with its bounds; they are None if there are fewer than two values to resample."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Comparison(NamedTuple):
    """Two runs on the same questions: their means, the interval of the difference (b - a), and its p-value."""

    mean_a: float
    mean_b: float
    difference: Interval
    p_value: float


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """The mean of at least one value, with its bootstrap interval."""
    import numpy as np
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None, len(values))
    result = stats.bootstrap(
        (np.asarray(values, dtype=float),), np.mean, n_resamples=N_RESAMPLES, batch=_BATCH, confidence_level=LEVEL,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    interval = result.confidence_interval
    return Interval(mean, float(interval.low), float(interval.high), len(values))


def compare_paired(values_a: Sequence[float], values_b: Sequence[float]) -> Comparison:
    """Compare two runs' scores of the same questions, in the same order."""
    import numpy as np
    from scipy import stats

    a, b = np.asarray(values_a, dtype=float), np.asarray(values_b, dtype=float)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"{a.size} and {b.size} scores; a paired comparison needs one pair for each question")
    difference = bootstrap_mean((b - a).tolist())
    if not np.any(a != b):
        return Comparison(float(a.mean()), float(b.mean()), difference, 1.0)

    def mean_difference(x: Any, y: Any, axis: int) -> Any:
        return np.mean(y - x, axis=axis)

    result = stats.permutation_test(
        (a, b), mean_difference, permutation_type="samples", vectorized=True, n_resamples=N_PERMUTATIONS,
        batch=_BATCH, rng=np.random.default_rng(0),
    )  # fmt: skip
    return Comparison(float(a.mean()), float(b.mean()), difference, float(result.pvalue))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """The p-value of McNemar's exact test: so many questions are right in one run alone, so many in the other alone."""
    from scipy import stats

    differing = only_a + only_b
    return float(stats.binomtest(only_a, differing).pvalue) if differing else 1.0
