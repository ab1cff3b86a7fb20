"""The user's own reward: `FILE:FUNCTION`, a Python file and the name of a function in it.

    def function(trajectory: Trajectory, gold_answers: Sequence[str]) -> tuple[float, str]

The function returns value and reason. It is loaded once in a process. A mistake in it is a `UserError` of one line that
names the line of the file.
"""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from flashrag.episode import Trajectory
from flashrag.errors import UserError, did_you_mean
from flashrag.reward.rules import Reward

EXPECTED = "expected (value, reason), a finite number and a text"
MOST_SHOWN = 200  # characters of a value that was returned


class RewardError(UserError):
    """The user's function raised an exception, or returned something else than a reward."""


@dataclass(frozen=True)
class OwnReward:
    """A function of the user's file, as a reward. `line` is where it begins."""

    path: Path
    name: str
    line: int
    function: Callable[[Trajectory, Sequence[str]], Any]

    def __call__(self, trajectory: Trajectory, gold_answers: Sequence[str]) -> Reward:
        """Value and reason; raises `RewardError`.

        A question without an answer because of an error, in an evaluation, is not shown to it, and has 0.
        """
        if trajectory.error is not None:
            return Reward(0.0, str(trajectory.error))
        try:
            returned = self.function(trajectory, gold_answers)
        except (Exception, SystemExit) as error:
            raise RewardError(f"{told(error, self.path)} ({self._asked(trajectory)})") from error
        match returned:
            case [Real() as number, str() as reason] if (value := _finite(number)) is not None:
                return Reward(value, reason)
        shown = repr(returned)[:MOST_SHOWN]
        raise RewardError(f"{self.path}, line {self.line}: returned {shown} ({self._asked(trajectory)}); {EXPECTED}")

    def _asked(self, trajectory: Trajectory) -> str:
        return f"{self.name}, question {trajectory.question_id!r}"


def _finite(number: Any) -> float | None:
    try:
        value = float(number)
    except (OverflowError, ValueError):
        return None
    return value if math.isfinite(value) else None


def told(error: BaseException, path: Path) -> str:
    """An exception in one line, with the last line of the user's file that it passed."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{path}, line {line}" if line else str(path)
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return f"{where}: {type(error).__name__}{': ' if text else ''}{text}"


@lru_cache
def own_reward(path: Path, name: str) -> OwnReward:
    """The function of this name in a Python file; raises `UserError` if there is none that takes a trajectory."""
    if not path.is_file():
        raise UserError(f"the reward's file {path} does not exist; give a Python file as FILE:FUNCTION")
    module = _run(path)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        found = did_you_mean(name, own) or f"; it has {', '.join(own) or 'none'}"
        raise UserError(f"{path} has no function {name!r}{found}")
    line = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_firstlineno", 1)
    where = f"{path}, line {line}: {name}"
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{where} is async; expected a plain function (def {name})")
    try:
        inspect.signature(function).bind(None, ())
    except (TypeError, ValueError) as error:  # ValueError: of a function in C that tells no arguments
        expected = f"expected {name}(trajectory, gold_answers)"
        raise UserError(f"{where} cannot be called with two arguments ({error}); {expected}") from error
    return OwnReward(path, name, line, function)


def _run(path: Path) -> ModuleType:
    """The file as a module. It may import the files beside it, as a program may."""
    spec = importlib.util.spec_from_file_location(f"reward_of_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"the reward's file {path} is no Python file; expected a name that ends in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{told(error, path)}; correct the reward's file") from error
    return module
