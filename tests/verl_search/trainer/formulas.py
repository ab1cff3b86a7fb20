"""The estimators' formulas, written out over plain numbers: what the tests compare verl's path with.

Failed searches, whose mask is empty, are left out of everything; so is an episode alone in its group where episodes are
compared within groups.
"""

from collections.abc import Callable, Sequence
from statistics import mean, stdev

from verl_search.preflight.settings_rules import GROUP_ESTIMATORS

Row = tuple[str, float, list[int]]  # an episode: group, reward, mask
PerToken = list[list[float]]


def compared(name: str, rows: Sequence[Row]) -> list[int]:
    """The numbers of the episodes that an estimator compares."""
    trained = [i for i, (_, _, mask) in enumerate(rows) if any(mask)]
    if name not in GROUP_ESTIMATORS:
        return trained
    return [i for i in trained if sum(rows[j][0] == rows[i][0] for j in trained) > 1]


def grpo(reward: float, rewards: Sequence[float]) -> float:
    return (reward - mean(rewards)) / (stdev(rewards) + 1e-6)


def less_the_mean(reward: float, rewards: Sequence[float]) -> float:
    return reward - mean(rewards)


def less_the_others(reward: float, rewards: Sequence[float]) -> float:
    return reward - (sum(rewards) - reward) / (len(rewards) - 1)


def lead_of_the_best(reward: float, rewards: Sequence[float]) -> float:
    first, second = sorted(rewards, reverse=True)[:2]
    return (first - second) / (stdev(rewards) + 1e-6) if reward == first else 0.0


RELATIVE: dict[str, Callable[[float, Sequence[float]], float]] = {
    "grpo": grpo,
    "grpo_vectorized": grpo,
    "dr_grpo": less_the_mean,
    "rloo": less_the_others,
    "rloo_vectorized": less_the_others,
    "grpo_passk": lead_of_the_best,
    "gpg": less_the_mean,
    "reinforce_plus_plus_baseline": less_the_mean,
}


def reference_advantages(
    name: str, rows: Sequence[Row], values: Sequence[Sequence[float]] = (), gamma: float = 1.0, lam: float = 1.0
) -> PerToken:
    """The advantage of each token, 0 where it is not trained on."""
    kept = compared("grpo" if name == "dr_grpo" else name, rows)
    plain = [[0.0] * len(mask) for _, _, mask in rows]
    if name == "gae":
        plain = reference_gae(rows, values, gamma, lam)[0]
    elif name == "reinforce_plus_plus":
        for i in kept:
            plain[i] = discounted(rows[i], gamma)
    else:
        for i in kept:
            group = [j for j in kept if rows[j][0] == rows[i][0]]
            rewards, lengths = [rows[j][1] for j in group], [sum(rows[j][2]) for j in group]
            if name == "opo":  # the baseline is weighted by length
                value = rows[i][1] - sum(r * n for r, n in zip(rewards, lengths, strict=True)) / sum(lengths)
            else:
                value = RELATIVE[name](rows[i][1], rewards)
            if name == "gpg":  # more weight, the more rewards are 0
                value *= len(kept) / sum(rows[j][1] != 0 for j in kept)
            plain[i] = [value * trained for trained in rows[i][2]]
    return whitened(plain, rows, kept) if name.startswith("reinforce") or name == "gae" else plain


def discounted(row: Row, gamma: float) -> list[float]:
    """The return of each trained token; the reward counts at the last one."""
    _, reward, mask = row
    return [reward * gamma ** sum(mask[t + 1 :]) * mask[t] for t in range(len(mask))]


def whitened(plain: PerToken, rows: Sequence[Row], kept: Sequence[int]) -> PerToken:
    """Less the mean over all trained tokens that are compared, divided by their deviation."""
    tokens = [value for i in kept for value, trained in zip(plain[i], rows[i][2], strict=True) if trained]
    return [
        [(value - mean(tokens)) / stdev(tokens) * trained * (i in kept) for value, trained in zip(*each, strict=True)]
        for i, each in enumerate(zip(plain, (mask for _, _, mask in rows), strict=True))
    ]


def reference_gae(
    rows: Sequence[Row], values: Sequence[Sequence[float]], gamma: float, lam: float
) -> tuple[PerToken, PerToken]:
    """Advantages before whitening, and returns: backwards over the trained tokens, the reward on the last of them."""
    plain, returns = ([[0.0] * len(mask) for _, _, mask in rows] for _ in range(2))
    for i, (_, reward, mask) in enumerate(rows):
        next_value = next_advantage = 0.0
        for t in reversed([t for t, trained in enumerate(mask) if trained]):
            now = 0.0 if any(mask[t + 1 :]) else reward
            next_advantage = now + gamma * next_value - values[i][t] + gamma * lam * next_advantage
            next_value = values[i][t]
            plain[i][t], returns[i][t] = next_advantage, next_advantage + values[i][t]
    return plain, returns
