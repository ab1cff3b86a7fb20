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
from flashrag.episode import Dialect, EndReason, Episode, Segment, Source, ToolCall, Trajectory
from flashrag.errors import did_you_mean
from flashrag.preflight import torch_allowed
from flashrag.questions import Question
from flashrag.reward.own import RewardError, own_reward
from flashrag.reward.rules import RewardFunction, rewarded
from flashrag.reward.terms import JUDGE_TERM, TERMS, weighted_reward

EXPECTED = "expected FILE:FUNCTION, such as my_reward.py:reward, or weights of terms, such as {em: 1.0, format: 0.1}"
THOUGHTS = ("I look it up.", "Now I know.")
# For a trial without the questions of the run.
MADE_UP = Question("made up", "Who was the first king of Zhou?", ("King Wu",))


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
    setting: str | Mapping[str, float],
    question: Question,
    dialect: Dialect,
    metrics_of: Callable[[Trajectory], Mapping[str, float | None]],
    **fields: Any,
) -> None:
    """Reward made-up trajectories of a question, in the run's dialect; raises `UserError` for a mistake.

    `metrics_of` and `fields` are those that a trajectory of the run has when it is rewarded.
    """
    with torch_allowed():
        reward_of = reward_function(setting)
        for what, trajectory in _made_up(question, dialect, fields):
            try:
                rewarded(replace(trajectory, metrics=metrics_of(trajectory)), reward_of)
            except RewardError as error:
                raise RewardError(f"{error}: tried on a made-up trajectory, {what}") from error


def made_up_texts(question: str, answer: str, dialect: Dialect) -> tuple[str, str]:
    """The two turns of a model that searches once for the question, and then gives the answer."""
    opened, closed = dialect.think
    first, last = (f" {opened} {thought} {closed} " for thought in THOUGHTS)
    shown = dialect.shown_answer(answer)
    if dialect.answer is not None:
        shown = f"{dialect.answer.open} {shown} {dialect.answer.close}"
    return f"{first}{dialect.render_search(question)}", f"{last}{shown}"


def _made_up(question: Question, dialect: Dialect, fields: Mapping[str, Any]) -> Iterator[tuple[str, Trajectory]]:
    gold, *_ = question.golden_answers
    passage = Passage("1", f'"A title"\nA passage that holds {gold}.', 0.5)
    found = Segment(Source.RESULT, dialect.render_result(passage.contents), (3, 4), call=0)
    call = ToolCall(question.question, (passage,), 0.1)

    def turns(answer: str) -> list[Segment]:
        texts = made_up_texts(question.question, answer, dialect)
        return [Segment(Source.MODEL, text, (5, 6), (-0.5, -0.5)) for text in texts]

    (searched, right), (_, wrong) = turns(gold), turns(f"no {gold}")
    ended = EndReason.ANSWERED if dialect.stops_at_answer else EndReason.EOS
    asked = {"question_id": question.id, "question": question.question, "gold_answers": question.golden_answers}
    for what, segments, calls, end in (
        ("a right answer after a search", [searched, found, right], [call], ended),
        ("a wrong answer without a search", [wrong], [], ended),
        ("no token before the deadline", [], [], EndReason.DEADLINE),
    ):
        yield what, Trajectory.of_episode(Episode((0,), segments, calls, end, dialect=dialect), **asked, **fields)
