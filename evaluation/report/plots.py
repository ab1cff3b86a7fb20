"""The plots of a report, as SVG: EM against searches and against tokens, and the lengths of the responses."""

import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.report.page import Plot, Run, verdict
from evaluation.report.tables import EvaluatedRun
from flashrag.episode import Trajectory

MAX_SEARCHES = 8
TOKEN_BINS = 8
SIZE_INCH = (4.6, 3.2)
Drawn = TypeVar("Drawn")


def plots(runs: Sequence[Run]) -> list[Plot]:
    """Three plots over all runs; an empty list when there is nothing to plot."""
    runs = [run for run in runs if run.trajectories]
    if not runs:
        return []
    return [
        Plot("Exact match against searches", _svg(runs, _em_by_searches)),
        Plot("Exact match against sampled tokens", _svg(runs, _em_by_tokens)),
        Plot("Sampled tokens per question", _svg(runs, _lengths)),
    ]


def _svg(runs: Drawn, draw: Callable[[Figure, Drawn], None]) -> str:
    # A fixed salt gives the same ids for the same data, so that reports on the same runs are identical files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": draw.__name__, "font.size": 9}):
        figure = Figure(figsize=SIZE_INCH, layout="constrained")
        draw(figure, runs)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _em_by_searches(figure: Figure, runs: Sequence[Run]) -> None:
    axes = figure.add_subplot(xlabel=f"searches, {MAX_SEARCHES} or more grouped", ylabel="EM", ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for run in runs:
        groups: dict[float, list[Trajectory]] = defaultdict(list)
        for trajectory in run.trajectories:
            groups[min(trajectory.usage.searches, MAX_SEARCHES)].append(trajectory)
        _draw_groups(axes, run.name, groups)


def _em_by_tokens(figure: Figure, runs: Sequence[Run]) -> None:
    axes = figure.add_subplot(xlabel="sampled tokens (equal-sized groups)", ylabel="EM", ylim=(-0.03, 1.03))
    for run in runs:
        by_length = sorted(run.trajectories, key=attrgetter("usage.completion_tokens"))
        parts = np.array_split(np.arange(len(by_length)), min(TOKEN_BINS, len(by_length)))
        chosen = [[by_length[i] for i in part] for part in parts]
        groups = {float(np.mean([t.usage.completion_tokens for t in group])): group for group in chosen}
        _draw_groups(axes, run.name, groups)


def _draw_groups(axes, name: str, groups: dict[float, list[Trajectory]]) -> None:
    """EM per group with its standard error: the deviation over its questions, by the root of their number."""
    places = sorted(groups)
    shares = [_shares(groups[place]) for place in places]
    means = [np.mean(each) for each in shares]
    errors = [np.std(each) / np.sqrt(len(each)) for each in shares]
    axes.errorbar(places, means, yerr=errors, marker="o", markersize=3, linewidth=1, capsize=2, label=name)
    axes.legend(fontsize=7)


def _shares(trajectories: Sequence[Trajectory]) -> list[float]:
    """The share of right answers of each question."""
    right: dict[str, list[bool]] = defaultdict(list)
    for trajectory in trajectories:
        right[trajectory.question_id].append(verdict(trajectory) == "right")
    return [sum(answers) / len(answers) for answers in right.values()]


def curve_plots(curves: Mapping[str, Sequence[EvaluatedRun]]) -> list[Plot]:
    """The curve of each evaluation over the steps of a training run, with its intervals; none without steps or EM."""
    drawn = {name: [run for run in runs if run.summary["metrics"].get("em")] for name, runs in curves.items()}
    drawn = {name: runs for name, runs in drawn.items() if runs}
    return [Plot("Exact match over the steps of training", _svg(drawn, _em_by_step))] if drawn else []


def _em_by_step(figure: Figure, curves: Mapping[str, Sequence[EvaluatedRun]]) -> None:
    axes = figure.add_subplot(xlabel="step", ylabel="EM", ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for name, runs in curves.items():
        figures = [run.summary["metrics"]["em"] for run in runs]
        means = [em["mean"] for em in figures]
        bounds = [(0, 0) if em["low"] is None else (em["mean"] - em["low"], em["high"] - em["mean"]) for em in figures]
        steps = [run.step or 0 for run in runs]
        axes.errorbar(steps, means, yerr=np.transpose(bounds), marker="o", markersize=3, capsize=2, label=name)
    axes.legend(fontsize=7)


def _lengths(figure: Figure, runs: Sequence[Run]) -> None:
    axes = figure.add_subplot(xlabel="sampled tokens", ylabel="questions")
    lengths = [[trajectory.usage.completion_tokens for trajectory in run.trajectories] for run in runs]
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(one) for one in lengths]), bins=30)
    for run, one in zip(runs, lengths, strict=True):
        axes.hist(one, bins=edges.tolist(), histtype="step", label=run.name)
    axes.legend(fontsize=7)
