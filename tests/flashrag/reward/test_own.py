"""A reward out of the user's file: what is taken, and how each mistake is told."""

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from flashrag.episode import DIALECTS, RESEARCH, Dialect, Failure, Trajectory
from flashrag.errors import UserError
from flashrag.reward import MADE_UP, RewardError, RewardSetting, absolute, reward_function, try_reward
from flashrag.reward.own import OwnReward

ANSWERED = Trajectory("q7", "Who?", ("Wu",), answer="Wu")
File = Callable[[str], Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    """A file with this text."""

    def write(text: str) -> Path:
        path = tmp_path / "my_reward.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_function_gives_value_and_reason(file: File) -> None:
    path = file("def half(trajectory, gold_answers):\n    return trajectory.answer in gold_answers, 'in'\n")
    assert reward_function(f"{path}:half")(ANSWERED, ["Wu"]) == (1.0, "in", {})
    assert isinstance(reward_function(f"{path}:half")(ANSWERED, ["Wu"]).value, float)


def test_a_file_is_loaded_once(file: File) -> None:
    path = file("calls = []\ndef count(t, g):\n    calls.append(1)\n    return len(calls), ''\n")
    values = [reward_function(f"{path}:count")(ANSWERED, ["Wu"]).value for _ in range(3)]
    assert values == [1.0, 2.0, 3.0]


def test_a_file_may_import_its_neighbour_and_define_classes(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_of_my_reward.py").write_text("HALF = 0.5\n")
    text = "from dataclasses import dataclass\nfrom neighbour_of_my_reward import HALF\n@dataclass\nclass Mine:\n"
    path = file(text + "    x: 'float' = HALF\ndef reward(t, g):\n    return Mine().x, ''\n")
    assert reward_function(f"{path}:reward")(ANSWERED, ["Wu"]).value == 0.5


def test_a_check_that_keeps_torch_out_lets_the_file_have_it(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stand in").mkdir()
    (tmp_path / "stand in" / "torch.py").write_text("HALF = 0.5\n")
    monkeypatch.syspath_prepend(tmp_path / "stand in")
    monkeypatch.setitem(sys.modules, "torch", None)
    tried(file("def reward(t, g):\n    return 0, ''\n"))
    assert sys.modules["torch"] is None
    path = tmp_path / "with_torch.py"
    path.write_text("import torch\ndef reward(t, g):\n    from torch import HALF\n    return HALF, ''\n")
    tried(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def reward(t, g)\n", "line 1: SyntaxError: expected ':'; correct the reward's file"),
        ("\nimport nump\n", "line 2: ModuleNotFoundError: No module named 'nump'"),
        ("\nraise SystemExit(3)\n", "line 2: SystemExit: 3"),
        ("x = 1\ndef rewards(t, g): ...\n", "has no function 'reward'; did you mean 'rewards'?"),
        ("from os import path\ndef score(t, g): ...\n", "has no function 'reward'; it has score"),
        ("x = 1\n", "has no function 'reward'; it has none"),
        ("reward = 1\n", "has no function 'reward'"),
        (
            "\ndef reward(t): ...\n",
            "line 2: reward cannot be called with two arguments (too many pos",
        ),
        ("reward = next\n", "line 1: reward cannot be called with two arguments (no signature found for builtin"),
        (
            "def reward(t, g, *, k): ...\n",
            "missing a required argument: 'k'); expected reward(trajectory, gold_answers)",
        ),
        ("async def reward(t, g): ...\n", "line 1: reward is async; expected a plain function"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_line(text: str, message: str, file: File) -> None:
    path = file(text)
    with pytest.raises(UserError) as refused:
        reward_function(f"{path}:reward")
    assert str(path) in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return g[3], ''", "line 2: IndexError: tuple index out of range (reward, question 'q7')"),
        ("raise ValueError('two\\n lines')", "line 2: ValueError: two lines (reward, question 'q7')"),
        ("raise SystemExit(0)", "line 2: SystemExit: 0"),
        ("import json; json.loads('{')", "line 2: JSONDecodeError: Expecting property name"),  # raised in the library
        ("return 0.5", "line 1: returned 0.5 (reward, question 'q7'); expected (value, reason), a finite number and"),
        ("return None", "returned None"),
        ("return 0.5, None", "returned (0.5, None)"),
        ("return '1', 'text'", "returned ('1', 'text')"),
        ("return float('nan'), ''", "returned (nan, '')"),
        ("return float('-inf'), ''", "returned (-inf, '')"),
        ("return 10**400, ''", "returned (1000"),
        ("return 1.0, 'a', 'b'", "returned (1.0, 'a', 'b')"),
        ("yield 1", "returned <generator"),
    ],
)
def test_a_function_that_gives_no_reward_is_told_with_line_and_question(body: str, message: str, file: File) -> None:
    path = file(f"def reward(t, g):\n    {body}\n")
    with pytest.raises(RewardError) as failed:
        reward_function(f"{path}:reward")(ANSWERED, ("Wu",))
    assert str(failed.value).startswith(f"{path}, line ")
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.fractions())
ANYTHING = st.one_of(NUMBERS, st.text(), st.none(), st.lists(NUMBERS), st.tuples(NUMBERS, st.text()), st.binary())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(ANYTHING)
def test_whatever_is_returned_is_a_finite_reward_or_an_error(returned: Any) -> None:
    own = OwnReward(Path("my_reward.py"), "reward", 1, lambda *_: returned)
    try:
        reward = own(ANSWERED, ("Wu",))
    except RewardError as error:
        assert "expected (value, reason)" in str(error)
    else:
        assert (type(reward.value), type(reward.reason)) == (float, str)
        assert abs(reward.value) < float("inf")


def test_a_failed_question_is_not_shown_to_the_function(file: File) -> None:
    path = file("def reward(t, g):\n    raise ValueError\n")
    gone = Trajectory("q", "Who?", ("Wu",), error=Failure("SearchError", "gone"))
    assert reward_function(f"{path}:reward")(gone, ["Wu"]) == (0.0, "SearchError: gone", {})


class Settings(BaseModel, extra="forbid"):
    reward: RewardSetting = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("my_reward.py", "expected FILE:FUNCTION, such as my_reward.py:reward, or weights"),
        ("my_reward.py:", "expected FILE:FUNCTION"),
        (":reward", "expected FILE:FUNCTION"),
        ("", "expected FILE:FUNCTION"),
        (3, "expected FILE:FUNCTION"),
        ({}, "expected FILE:FUNCTION"),
        ({"ef": 1.0}, "'ef' is not a term; choose from em, f1, cover_em, format, retrieval_hit, searches, length, j"),
        ({"search": 1.0}, "'search' is not a term; did you mean 'searches'?"),
        ({"em": "1"}, "the weight of em is '1'; expected a number"),
        ({"em": float("nan")}, "the weight of em is nan; expected a number"),
        ({"em": True}, "the weight of em is True; expected a number"),
        ({1: 1.0}, "1 is not a term"),
    ],
)
def test_a_setting_that_names_no_reward(given: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Settings(reward=given)


@pytest.mark.parametrize("given", [None, "a:b/my_reward.py:reward", {"em": 1.0, "searches": -0.1}])
def test_a_setting_that_names_a_reward(given: Any) -> None:
    assert Settings(reward=given).reward == given


def test_a_relative_path_holds_in_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("my_reward.py:reward") == f"{tmp_path}/my_reward.py:reward"
    assert absolute({"em": 1.0}) == {"em": 1.0}
    assert absolute(None) is None


def tried(path: Path, dialect: Dialect = RESEARCH) -> None:
    try_reward(f"{path}:reward", MADE_UP, dialect, lambda _: {"em": 1.0}, step=1)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_the_trial_speaks_the_run_s_dialect(tmp_path: Path, dialect: Dialect) -> None:
    code = """
        seen = []
        def reward(trajectory, gold_answers):
            assert trajectory.dialect == "NAME", trajectory.dialect
            assert trajectory.format_valid in (None, bool(trajectory.segments)), trajectory.segments
            assert trajectory.answer in ("King Wu", "no King Wu", ""), trajectory.answer
            return 0.0, trajectory.end_reason
    """
    path = tmp_path / "my_reward.py"
    path.write_text(textwrap.dedent(code).replace("NAME", dialect.name))
    tried(path, dialect)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"the reward's file /nowhere/my_reward.py does not exist; give a Python file"):
        tried(Path("/nowhere/my_reward.py"))


def test_a_file_that_is_no_python_file(tmp_path: Path) -> None:
    (tmp_path / "reward.txt").write_text("x")
    with pytest.raises(UserError, match=r"reward.txt is no Python file; expected a name that ends in .py"):
        tried(tmp_path / "reward.txt")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return t.calls[0].latency_s, ''",
            "IndexError: tuple index out of range (reward, question 'made up'): tried on a",
        ),
        (
            "return len(t.segments[0].text), ''",
            "question 'made up'): tried on a made-up trajectory, no token before the deadline",
        ),
        ("return t.metrics['em'] / t.usage.completion_tokens, ''", "ZeroDivisionError"),
        ("return t.reward * 2, ''", "TypeError: unsupported operand"),
        ("return t.metrics['rouge'], ''", "KeyError: 'rouge'"),
    ],
)
def test_a_mistake_is_found_on_made_up_trajectories(body: str, message: str, file: File) -> None:
    with pytest.raises(RewardError, match=re.escape(message)):
        tried(file(f"def reward(t, g):\n    {body}\n"))


def test_what_a_made_up_trajectory_has(file: File) -> None:
    tried(
        file(
            "def reward(t, g):\n"
            "    assert t.step == 1 and g == t.gold_answers\n"
            "    assert t.question_id == 'made up' and t.question in (c.query for c in t.calls) or not t.calls\n"
            "    hit = any('King Wu' in p.contents for call in t.calls for p in call.passages)\n"
            "    assert t.answer in ('King Wu', 'no King Wu', '') and bool(t.answer) == t.format_valid\n"
            "    return t.metrics['em'] * hit, ''\n"
        )
    )
