"""The reward of a question: a pure function of its trajectory and gold answers, for training and evaluation alike.

    rules.py    what a reward is, and the published ones: format and answer, or the answer alone
    terms.py    a weighted sum of built-in terms
    own.py      the user's own function, out of a file
    setting.py  which of the latter two a configuration names, and its trial before anything starts
    judge.py    a chat model's verdict on an answer; judge_check.py asks before a run whether it is there

docs/training.md explains them. Does not cover: how the answer is compared (flashrag.metrics).
"""

from flashrag.reward.judge import JUDGE, Judge, JudgeError, JudgeSettings
from flashrag.reward.judge_check import JudgeReply, ask_judge, judge_findings
from flashrag.reward.own import RewardError
from flashrag.reward.rules import TERM_PREFIX, AnswerMetric, Reward, RewardFunction, RewardRule, rewarded, rule_reward
from flashrag.reward.setting import (
    MADE_UP,
    RewardSetting,
    absolute,
    made_up_texts,
    needs_judge,
    reward_function,
    try_reward,
)

__all__ = [
    "JUDGE",
    "MADE_UP",
    "TERM_PREFIX",
    "AnswerMetric",
    "Judge",
    "JudgeError",
    "JudgeReply",
    "JudgeSettings",
    "Reward",
    "RewardError",
    "RewardFunction",
    "RewardRule",
    "RewardSetting",
    "absolute",
    "ask_judge",
    "judge_findings",
    "made_up_texts",
    "needs_judge",
    "reward_function",
    "rewarded",
    "rule_reward",
    "try_reward",
]
