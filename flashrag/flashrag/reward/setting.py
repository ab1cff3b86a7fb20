"""A reward as a configuration names it: `FILE:FUNCTION`, or the weights of terms; and its trial before a run starts.

The trial gives the reward made-up trajectories, so that a mistake in it costs seconds.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from flashrag.document import Passage
from flashrag.episode import EndReason, Episode, Segment, Source, ToolCall, Trajectory
from flashrag.errors import did_you_mean
from flashrag.preflight import torch_allowed
from flashrag.reward.own import own_reward
from flashrag.reward.rules import RewardFunction, rewarded
from flashrag.reward.terms import JUDGE_TERM, TERMS, weighted_reward

EXPECTED = "expected FILE:FUNCTION, such as my_reward.py:reward, or weights of terms, such as {em: 1.0, format: 0.1}"
SEARCHED = " <think> I look it up. </think> <search> first king of Zhou </search>"
FOUND = '"King Wu of Zhou"\nKing Wu was the first king of the Zhou dynasty.'
ANSWERED = r" <think> Now I know. </think> <answer> The final answer is \[ \boxed{King Wu} \] </answer>"


def _checked(value: Any) -> Any:
    if isinstance(value, Mapping) and value:
        return {name: _weight(name, weight) for name, weight in value.items()}
    if value is None or (isinstance(value, str) and all(value.rpartition(":"))):
        return value
    raise ValueError(EXPECTED)


def _weight(name: str, weight: Any) -> float:
    if name not in TERMS:
        known = did_you_mean(str(name), TERMS) or f"; choose from {', '.join(TERMS)}"
        raise ValueError(f"{name!r} is not a term{known}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"the weight of {name} is {weight!r}; expected a number")
    return float(weight)


RewardSetting = Annotated[str | dict[str, float] | None, BeforeValidator(_checked)]


def reward_function(setting: str | Mapping[str, float]) -> RewardFunction:
    """The reward that a setting names; raises `UserError` for a file or a function that cannot be used."""
    if isinstance(setting, str):
        path, _, name = setting.rpartition(":")
        return own_reward(Path(path).absolute(), name)
    return partial(weighted_reward, weights=dict(setting))


def needs_judge(setting: Any) -> bool:
    """Whether a verdict must be among the metrics of a trajectory before it is rewarded."""
    return isinstance(setting, Mapping) and JUDGE_TERM in setting


def absolute(setting: Any) -> Any:
    """The setting for processes that work in other folders."""
    path, _, name = setting.rpartition(":") if isinstance(setting, str) else ("", "", "")
    return f"{Path(path).absolute()}:{name}" if name else setting


def try_reward(
    setting: str | Mapping[str, float], metrics_of: Callable[[Trajectory], Mapping[str, float | None]], **fields: Any
) -> None:
    """Reward made-up trajectories; raises `UserError` for a mistake.

    `metrics_of` and `fields` are those that a trajectory of the run has when it is rewarded.
    """
    with torch_allowed():
        reward_of = reward_function(setting)
        for trajectory in _made_up(**fields):
            rewarded(replace(trajectory, metrics=metrics_of(trajectory)), reward_of)


def _made_up(**fields: Any) -> Iterator[Trajectory]:
    """A right answer after a search, a wrong one without a search, and an episode that ended before its first token."""
    searched, found, answered = (
        Segment(Source.MODEL, SEARCHED, (1, 2), (-0.5, -0.5)),
        Segment(Source.RESULT, f" <result>\n{FOUND}\n</result>", (3, 4), call=0),
        Segment(Source.MODEL, ANSWERED, (5, 6), (-0.5, -0.5)),
    )
    call = ToolCall("first king of Zhou", (Passage("7", FOUND, 0.5),), 0.1)
    question: dict[str, Any] = {"question": "Who was the first king of Zhou?", "metadata": {}, **fields}
    for name, gold, segments, calls, end in (
        ("right", "King Wu", [searched, found, answered], [call], EndReason.EOS),
        ("wrong", "King Wen", [answered], [], EndReason.EOS),
        ("empty", "King Wu", [], [], EndReason.DEADLINE),
    ):
        episode = Episode((0,), segments, calls, end)
        yield Trajectory.of_episode(episode, question_id=f"made up, {name}", gold_answers=(gold,), **question)
