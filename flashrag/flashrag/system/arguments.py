"""The arguments of this project's commands: one parser, whose complaints are one line each, as all others."""

import argparse
import contextlib
import math
from collections.abc import Callable
from typing import NoReturn, TypeVar

from flashrag.errors import UserError

Number = TypeVar("Number", int, float)


class CommandParser(argparse.ArgumentParser):
    """A parser that raises `UserError` where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows the arguments")


def in_range(kind: type[Number], low: Number, high: Number | None = None) -> Callable[[str], Number]:
    """The `type` of an argument that is a finite number from `low` to `high`, both included."""
    expected = f"{'an integer' if kind is int else 'a number'} from {low} {'on' if high is None else f'to {high}'}"

    def parse(text: str) -> Number:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if math.isfinite(value) and low <= value and (high is None or value <= high):
                return value
        raise argparse.ArgumentTypeError(f"{text} was given; expected {expected}")

    return parse
