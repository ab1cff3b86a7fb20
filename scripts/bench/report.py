"""The figures of a benchmark: rounds side by side, medians and their spread, tables, curves, a line of JSON last."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from evaluation.report.tables import markdown_table

LEGEND_COLUMNS = 6


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


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with a heading, numbers with four digits; what a row lacks stays empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})


class Curve(NamedTuple):
    """A training as one line in each panel: its values at each step, and how matplotlib draws it."""

    label: str
    points: Sequence[Mapping[str, float]]
    style: Mapping[str, str] = {}


def draw_curves(path: Path, titles: Mapping[str, str], curves: Sequence[Curve]) -> None:
    """A panel for each of the values that `titles` names, with a line for each curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    panels = figure.subplots(1, len(titles))
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for label, points, style in curves:
            panel.plot([point["step"] for point in points], [point[name] for point in points], label=label, **style)
        panel.set(title=title, xlabel="step", ylim=(0, None))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS)
    figure.savefig(path, dpi=110)
