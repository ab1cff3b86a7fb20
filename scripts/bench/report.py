"""The figures of a benchmark: rounds side by side, medians and their spread, a table, and one line of JSON last."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.report.tables import markdown_table


def paired_rounds(title: str, rounds: Sequence[Any], ways: Mapping[Any, Callable[[Any], Any]]) -> dict[Any, list[Any]]:
    """The results of each way, one per round; every way does the same work, and the order is reversed each round.

    A machine that slows down slows all ways alike, so compare the ways within a round.
    """
    results: dict[Any, list[Any]] = {way: [] for way in ways}
    for number, work in enumerate(tqdm(rounds, title, unit="round")):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            results[way].append(ways[way](work))
    return results


def ratios(rounds: Mapping[str, Sequence[float]], *pairs: tuple[str, str]) -> dict[str, np.ndarray]:
    """`{way}_over_{other}` in each round."""
    return {f"{way}_over_{other}": np.divide(rounds[way], rounds[other]) for way, other in pairs}


def print_report(figures: Mapping[str, Any], targets: Mapping[str, str], **rounds: Sequence[float]) -> None:
    """A table of the figures and of the rounds behind them, then the figures as JSON: of a list, the median."""
    rows = [(name, shown(value), targets.get(name, "")) for name, value in _flat({**figures, **rounds})]
    print(markdown_table(("figure", "median (lowest–highest round)", "target"), rows))
    medians = {key: float(f"{np.median(v):.5g}") for key, v in figures.items() if isinstance(v, list | np.ndarray)}
    print(json.dumps({**figures, **medians}, default=float), flush=True)


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """
    >>> list(_flat({"a": {8: [160, 90]}, "b": [{"ms": 1.5}]}))
    [('a 8', [160, 90]), ('b 0 ms', 1.5)]
    """
    for key, value in values.items():
        parts = dict(enumerate(value)) if isinstance(value, list) and isinstance(value[0], Mapping) else value
        if isinstance(parts, Mapping):
            yield from _flat(parts, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """Three digits of a number, or all before the point; of rounds the median and the range.

    >>> shown([160.0, 90.0, 175.5]), shown(0.20941), shown(1717.2), shown(21_015_324), shown(None)
    ('160 (90–176)', '0.209', '1,717', '21,015,324', '–')
    """
    if isinstance(value, list | np.ndarray):
        return f"{shown(np.median(value))} ({shown(float(min(value)))}–{shown(float(max(value)))})"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return "–" if value is None else f"{value:,}" if type(value) is int else str(value)
