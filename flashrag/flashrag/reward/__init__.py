"""The reward of a question: a pure function of its trajectory and gold answers, for training and evaluation alike.

    rules.py    what a reward is, and the published ones: format and answer, or the answer alone
    terms.py    a weighted sum of built-in terms
    own.py      the user's own function, out of a file
    setting.py  which of the latter two a configuration names, and its trial before anything starts

docs/training.md explains them. Does not cover: how the answer is compared (flashrag.metrics).
"""

from flashrag.reward.own import RewardError
from flashrag.reward.rules import TERM_PREFIX, AnswerMetric, Reward, RewardFunction, RewardRule, rewarded, rule_reward
from flashrag.reward.setting import RewardSetting, absolute, reward_function, try_reward

__all__ = [
    "TERM_PREFIX",
    "AnswerMetric",
    "Reward",
    "RewardError",
    "RewardFunction",
    "RewardRule",
    "RewardSetting",
    "absolute",
    "reward_function",
    "rewarded",
    "rule_reward",
    "try_reward",
]
