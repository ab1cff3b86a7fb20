"""Alarms: rules over the metrics of each step that detect a run going wrong and choose an action.

A rule watches one metric. It breaches where the value crosses a threshold, fixed or relative to the median of the
metric's own history; after `patience` such steps in a row it raises an alarm, once until the metric has recovered.
Pure: alarm_watch.py carries out the actions. The rules: config/alarms.yaml; docs/alarms.md explains them.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from flashrag.config import validated
from flashrag.errors import UserError

# Condition -> whether a value crosses the threshold, given the history's median (the "base").
FIXED = {
    "above": lambda value, threshold: value > threshold,
    "below": lambda value, threshold: value < threshold,
}
RELATIVE = {
    "rises_by": lambda value, threshold, base: value > base + threshold,
    "falls_by": lambda value, threshold, base: value < base - threshold,
    "rises_to": lambda value, threshold, base: value > base * threshold,
    "falls_to": lambda value, threshold, base: value < base * threshold,
}
CONDITIONS = (*FIXED, *RELATIVE)
FACTORS = ("rises_to", "falls_to")  # of a median that is not negative, as that of a reward with costs may be


class Action(StrEnum):
    """The action of an alarm: warn, warn and save a checkpoint, or warn and end the run."""

    WARN = "warn"
    SAVE = "save"
    STOP = "stop"


class Rule(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One rule; exactly one of the conditions is given."""

    metric: str = Field(min_length=1)
    action: Action
    patience: int = Field(1, ge=1)
    # Steps of history that a relative condition needs before it judges.
    window: int = Field(20, ge=2)
    above: float | None = None
    below: float | None = None
    rises_by: float | None = Field(None, gt=0)
    falls_by: float | None = Field(None, gt=0)
    rises_to: float | None = Field(None, gt=1)
    falls_to: float | None = Field(None, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        given = [name for name in CONDITIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(CONDITIONS)} is needed, given: {', '.join(given) or 'none'}")
        return self

    @property
    def condition(self) -> str:
        return next(name for name in CONDITIONS if getattr(self, name) is not None)

    @property
    def threshold(self) -> float:
        return getattr(self, self.condition)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A rule that has been breached for as long as its patience; `str` gives the message for the user."""

    name: str
    rule: Rule
    step: int
    value: float
    base: float | None

    def __str__(self) -> str:
        rule = self.rule
        history = "" if self.base is None else f" (median of the {rule.window} steps before: {self.base:.4g})"
        steps = "" if rule.patience == 1 else f", for {rule.patience} steps"
        return (
            f"alarm {self.name}: {rule.metric} is {self.value:.4g}{history}, "
            f"{rule.condition} {rule.threshold:g}{steps} [step {self.step}]"
        )


def parse_rules(given: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules by name; a rule that is null is switched off. Raises `UserError` naming the rule and its fault."""
    rules = {}
    for name, fields in given.items():
        if fields is None:
            continue
        if not isinstance(fields, Mapping):
            raise UserError(f"alarms.{name}={fields!r} is not a rule; give metric, action and one condition, or null")
        rules[name] = validated(Rule, fields, f"alarms.{name} (docs/alarms.md)")
    return rules


class _Watch:
    """One rule and the history of its metric."""

    def __init__(self, name: str, rule: Rule):
        self.name = name
        self.rule = rule
        # Values of breaching steps stay out, or the next step would be compared with a collapse.
        self.history: deque[float] = deque(maxlen=rule.window)
        self.breaches = 0
        self.base: float | None = None

    def see(self, step: int, value: float) -> Alarm | None:
        """Add a step's value; returns the alarm if the step completes the rule's patience."""
        relative = self.rule.condition in RELATIVE
        self.base = median(self.history) if relative and len(self.history) == self.rule.window else None
        if not self._is_breach(value):
            self.breaches = 0
            self.history.append(value)
            return None
        self.breaches += 1
        raised = self.breaches == self.rule.patience
        return Alarm(self.name, self.rule, step, value, self.base) if raised else None

    def _is_breach(self, value: float) -> bool:
        if not math.isfinite(value):
            return True
        if self.rule.condition in FIXED:
            return FIXED[self.rule.condition](value, self.rule.threshold)
        if self.base is None or (self.base < 0 and self.rule.condition in FACTORS):
            return False
        return RELATIVE[self.rule.condition](value, self.rule.threshold, self.base)


class Alarms:
    """All rules of a run."""

    def __init__(self, rules: Mapping[str, Rule]):
        self._watches = [_Watch(name, rule) for name, rule in rules.items()]

    def see(self, step: int, metrics: Mapping[str, Any]) -> tuple[list[Alarm], dict[str, float]]:
        """The alarms that this step raises, and the step's alarm metrics.

        A metric that the step lacks changes nothing for its rule. `alarm/<rule>` is 1 while the rule has been breached
        for its patience, else 0; `alarm/<rule>/change`, of relative rules, is the distance from the history's median.
        """
        raised, own_metrics = [], {}
        for watch in self._watches:
            value = metrics.get(watch.rule.metric)
            if value is None:
                continue
            alarm = watch.see(step, float(value))
            if alarm is not None:
                raised.append(alarm)
            own_metrics[f"alarm/{watch.name}"] = float(watch.breaches >= watch.rule.patience)
            if watch.base is not None:
                own_metrics[f"alarm/{watch.name}/change"] = float(value) - watch.base
        return raised, own_metrics
