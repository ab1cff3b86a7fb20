"""The rules of the alarms, step by step with values that can be followed by hand."""

from typing import Any

import pytest
import yaml

from flashrag.errors import UserError
from verl_search.composition import CONFIG_DIR
from verl_search.trainer.alarms import Action, Alarms, Rule, parse_rules

METRIC = "rollout/x"


def alarm_steps(rule: dict[str, Any], values: list[float | None]) -> list[int]:
    """The steps (from 1) at which one rule raises an alarm; a value of None is a step without the metric."""
    alarms = Alarms(parse_rules({"rule": {"metric": METRIC, "action": "warn", **rule}}))
    raised = []
    for step, value in enumerate(values, 1):
        found, _ = alarms.see(step, {} if value is None else {METRIC: value})
        raised += [alarm.step for alarm in found]
    return raised


def test_a_fixed_threshold_is_crossed_not_touched() -> None:
    assert alarm_steps({"above": 0.5}, [0.4, 0.5, 0.6]) == [3]
    assert alarm_steps({"below": 0.5}, [0.6, 0.5, 0.4]) == [3]


def test_patience_counts_steps_in_a_row() -> None:
    #                                                    1    2    3    4    5    6
    assert alarm_steps({"above": 0.5, "patience": 3}, [0.9, 0.9, 0.1, 0.9, 0.9, 0.9]) == [6]


def test_an_alarm_comes_once_until_the_metric_has_recovered() -> None:
    assert alarm_steps({"above": 0.5, "patience": 2}, [0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9]) == [2, 7]


@pytest.mark.parametrize(
    ("condition", "quiet", "loud"),
    # history 4 2 6: its median is 4
    [
        ({"rises_by": 1.5}, 5.5, 5.6),
        ({"falls_by": 1.5}, 2.5, 2.4),
        ({"rises_to": 2.0}, 8.0, 8.1),
        ({"falls_to": 0.5}, 2.0, 1.9),
    ],
)
def test_a_relative_threshold_is_measured_from_the_median(
    condition: dict[str, float], quiet: float, loud: float
) -> None:
    assert alarm_steps({**condition, "window": 3}, [4.0, 2.0, 6.0, quiet]) == []
    assert alarm_steps({**condition, "window": 3}, [4.0, 2.0, 6.0, loud]) == [4]


def test_without_a_full_window_nothing_is_judged() -> None:
    assert alarm_steps({"falls_to": 0.5, "window": 3}, [4.0, 4.0, 0.0]) == []


def test_a_collapse_does_not_become_its_own_history() -> None:
    # The median stays 4 however long the fall lasts; a window of all values would follow it down after two steps.
    assert alarm_steps({"falls_to": 0.5, "window": 3, "patience": 6}, [4.0] * 3 + [1.0] * 6) == [9]


def test_a_factor_says_nothing_of_a_negative_median() -> None:
    """A reward with costs may be negative: -1 is less than a quarter of -1, and is no collapse."""
    assert alarm_steps({"falls_to": 0.25, "window": 2}, [-1.0, -1.0, -1.0, -1.2, 1.0]) == []
    assert alarm_steps({"rises_to": 2.0, "window": 2}, [-1.0, -1.0, -1.0, 1.0]) == []
    assert alarm_steps({"falls_to": 0.25, "window": 2}, [0.0, 0.0, -0.1]) == [3]


def test_the_likelihood_of_correct_answers_may_fall_below_zero() -> None:
    assert alarm_steps({"falls_by": 0.5, "window": 2, "patience": 2}, [-0.2, -0.3, -0.9, None, -0.9]) == [5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_breaches_every_rule(value: float) -> None:
    assert alarm_steps({"above": 1e9}, [1.0, value]) == [2]
    assert alarm_steps({"falls_to": 0.1, "window": 5}, [1.0, value]) == [2]


def test_the_steps_metrics_say_which_rules_are_breached() -> None:
    rules = parse_rules({
        "level": {"metric": METRIC, "action": "save", "above": 3.0, "patience": 2},
        "fall": {"metric": METRIC, "action": "stop", "falls_by": 9.0, "window": 2},
        "other": {"metric": "rollout/y", "action": "warn", "above": 3.0},
    })  # fmt: skip
    alarms = Alarms(rules)
    seen = [alarms.see(step, {METRIC: value})[1] for step, value in enumerate([2.0, 4.0, 5.0, 1.0], 1)]
    assert seen == [
        {"alarm/level": 0.0, "alarm/fall": 0.0},
        {"alarm/level": 0.0, "alarm/fall": 0.0},
        {"alarm/level": 1.0, "alarm/fall": 0.0, "alarm/fall/change": 5.0 - (2.0 + 4.0) / 2},
        {"alarm/level": 0.0, "alarm/fall": 0.0, "alarm/fall/change": 1.0 - (4.0 + 5.0) / 2},
    ]


def test_an_alarm_says_what_happened() -> None:
    rules = parse_rules({"fall": {"metric": METRIC, "action": "stop", "falls_to": 0.25, "window": 2, "patience": 2}})
    alarms = Alarms(rules)
    for step, value in enumerate([0.5, 0.7, 0.1], 1):
        assert alarms.see(step, {METRIC: value})[0] == []
    (alarm,) = alarms.see(4, {METRIC: 0.05})[0]
    assert alarm.rule.action is Action.STOP
    assert str(alarm) == (
        "alarm fall: rollout/x is 0.05 (median of the 2 steps before: 0.6), falls_to 0.25, for 2 steps [step 4]"
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"r": 3}, "=3 is not a rule; give metric, action and one condition, or null"),
        ({"r": {"action": "warn", "above": 1}}, "metric is not set"),
        ({"r": {"metric": "m", "action": "warn"}}, ": exactly one of above, below,.* given: none"),
        ({"r": {"metric": "m", "action": "warn", "above": 1, "below": 0}}, "given: above, below"),
        ({"r": {"metric": "m", "action": "halt", "above": 1}}, "action: 'halt' was given; .*'warn', 'save' or 'stop'"),
        ({"r": {"metric": "m", "action": "warn", "over": 1}}, "unknown key 'over'; known keys: above,"),
        ({"r": {"metric": "m", "action": "warn", "above": "much"}}, "above: 'much' was given; .*valid number"),
        ({"r": {"metric": "m", "action": "warn", "above": float("nan")}}, "above: nan was given; .*finite number"),
        ({"r": {"metric": "m", "action": "warn", "above": 1, "patience": 0}}, "patience: 0 was given; .*greater than"),
        ({"r": {"metric": "m", "action": "warn", "falls_to": 1.5}}, r"falls_to: 1\.5 was given; .*less than 1"),
    ],
)
def test_an_invalid_rule_is_refused_by_name(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^alarms\.r.*{message}"):
        parse_rules(rules)


def test_a_rule_that_is_null_is_off() -> None:
    assert parse_rules({"r": None}) == {}


def test_the_shipped_rules_are_rules() -> None:
    shipped = yaml.safe_load((CONFIG_DIR / "alarms.yaml").read_text(encoding="utf-8"))
    rules = parse_rules(shipped["alarms"])
    assert rules["collapse"] == Rule(metric="critic/score/mean", falls_to=0.25, patience=5, action=Action.STOP)
    assert {rule.action for rule in rules.values()} == set(Action)
