"""The figures of a benchmark: rounds side by side, medians and their spread, a table, and one line of JSON last."""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from evaluation.report.tables import markdown_table

Work = TypeVar("Work")
Way = TypeVar("Way", bound=Hashable)
Result = TypeVar("Result")
NONE: Mapping[str, Any] = MappingProxyType({})


def paired_rounds(rounds: Iterable[Work], ways: Mapping[Way, Callable[[Work], Result]]) -> dict[Way, list[Result]]:
    """The results of each way, one per round; every way does the same work, and the order is reversed each round.

    A machine that slows down slows all ways alike, so compare the ways within a round.
    """
    results: dict[Way, list[Result]] = {way: [] for way in ways}
    for number, work in enumerate(rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            results[way].append(ways[way](work))
    return results


def median(values: Sequence[float] | np.ndarray) -> float:
    return float(np.median(values))


def print_report(figures: Mapping[str, Any], targets: Mapping[str, str], rounds: Mapping[str, Any] = NONE) -> None:
    """A table of the figures and of the rounds behind them, then the figures as JSON: of a list, the median."""
    rows = [(name, shown, targets.get(name, "")) for name, shown in _shown({**figures, **rounds})]
    print(markdown_table(("figure", "median (lowest–highest round)", "target"), rows))
    medians = {key: float(f"{median(v):.5g}") for key, v in figures.items() if isinstance(v, list | np.ndarray)}
    print(json.dumps({**figures, **medians}, default=float), flush=True)


def _shown(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """
    >>> list(_shown({"a": {8: [160, 90, 175]}, "b": [{"ms": 1.23456}], "c": None}))
    [('a 8', '160 (90–175)'), ('b 0 ms', '1.235'), ('c', 'None')]
    """
    for key, value in values.items():
        if isinstance(value, list) and isinstance(value[0], Mapping):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from _shown(value, f"{prefix}{key} ")
        elif isinstance(value, list | np.ndarray):
            yield f"{prefix}{key}", f"{median(value):.3g} ({min(value):.3g}–{max(value):.3g})"
        else:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)
