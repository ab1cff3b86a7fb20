"""The plots of a report, as SVG: EM against searches and against tokens, and the lengths of the responses."""

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from operator import attrgetter

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.report.page import Plot, Run, verdict
from flashrag.episode import Trajectory

MAX_SEARCHES = 8
TOKEN_BINS = 8
SIZE_INCH = (4.6, 3.2)


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


def _svg(runs: Sequence[Run], draw: Callable[[Figure, Sequence[Run]], None]) -> str:
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
    """EM per group with its standard error, which for a share is sqrt(p (1 - p) / n)."""
    places = sorted(groups)
    means = [np.mean([verdict(t) == "right" for t in groups[place]]) for place in places]
    errors = [np.sqrt(mean * (1 - mean) / len(groups[place])) for place, mean in zip(places, means, strict=True)]
    axes.errorbar(places, means, yerr=errors, marker="o", markersize=3, linewidth=1, capsize=2, label=name)
    axes.legend(fontsize=7)


def _lengths(figure: Figure, runs: Sequence[Run]) -> None:
    axes = figure.add_subplot(xlabel="sampled tokens", ylabel="questions")
    lengths = [[trajectory.usage.completion_tokens for trajectory in run.trajectories] for run in runs]
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(one) for one in lengths]), bins=30)
    for run, one in zip(runs, lengths, strict=True):
        axes.hist(one, bins=edges.tolist(), histtype="step", label=run.name)
    axes.legend(fontsize=7)
