"""The tables of a report: methods against datasets, all figures of all runs, and paired comparisons.

A table is built once as cells, then written as Markdown and as HTML, so that both have the same content.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from evaluation.scores.significance import compare_paired
from flashrag.client import SearchControl
from flashrag.prompts import PromptRecord

# Exact match in percent on the evaluated splits (accuracy for StrategyQA in the pilot). All used E5-base-v2 and
# Wikipedia of December 2018, with five passages per search, Search-R1 with three; baselines ran Qwen2.5-7B-Instruct.
PUBLISHED = Path(__file__).with_name("published.csv")

_STEP_NOTE = re.compile(r"(?:^|_)step_(\d+)$")


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """A finished evaluation: its name, its summary.json, and the EM of each question by id."""

    name: str
    summary: Mapping[str, Any]
    em_by_id: Mapping[str, float]

    @property
    def dataset(self) -> str:
        return self.summary["dataset"]

    @property
    def control(self) -> str:
        """What its searches gave; runs of before there were controls do not say."""
        return self.summary.get("search_control", SearchControl.NONE)

    @property
    def tells_budget(self) -> bool:
        """Whether its results told the model how many searches it had left; runs of before do not say, and did not."""
        return bool(self.summary.get("tell_budget"))

    @property
    def conditions(self) -> str:
        """How its searches differed from the usual ones; empty if they did not."""
        control = f"control {self.control}" if self.control != SearchControl.NONE else ""
        return ", ".join(filter(None, (control, "budget told" if self.tells_budget else "")))

    @property
    def num_samples(self) -> int:
        """How many answers there are to each question; runs of before there could be several do not say."""
        return self.summary.get("num_samples", 1)

    @property
    def step(self) -> int | None:
        """The step of training that ends its save_note: 20 of `step_20` and of `seed_1_step_20`."""
        found = _STEP_NOTE.search(self.summary.get("save_note") or "")
        return int(found[1]) if found else None

    @property
    def prompt(self) -> str:
        """Empty for a method that asks no model, and for runs of before prompts were recorded."""
        record = self.summary.get("prompt")
        return str(PromptRecord(**record)) if record else ""


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    published: frozenset[int] = frozenset()  # rows that are not ours


def overview_table(runs: Sequence[EvaluatedRun]) -> Table:
    """A row per method and a column per dataset, with EM in percent; the published rows follow, marked as such."""
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    labels = list(dict.fromkeys(_label(run) for run in runs))
    cells = {(_label(run), run.dataset): _percent(_headline(run)) for run in runs}
    rows = [[label, *(cells.get((label, dataset), "") for dataset in datasets)] for label in labels]
    methods = {run.summary["method"] for run in runs}
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        theirs = [row for row in csv.DictReader(file) if row["method"] in methods and any(map(row.get, datasets))]
    published = [
        [f"{row['method']}, {row['model']}: published, {row['source']}", *(row.get(d, "") for d in datasets)]
        for row in theirs
    ]
    return Table(
        "Exact match, % [95 % interval]; yes/no accuracy for StrategyQA",
        ["method", *datasets],
        [*rows, *published],
        frozenset(range(len(rows), len(rows) + len(published))),
    )


def _label(run: EvaluatedRun) -> str:
    """The method, its conditions, and the save_note that distinguishes runs of the same method."""
    notes = ", ".join(filter(None, (run.conditions, run.summary.get("save_note"))))
    return f"{run.summary['method']} ({notes})" if notes else run.summary["method"]


def _headline(run: EvaluatedRun) -> Mapping[str, Any] | None:
    metrics = run.summary["metrics"]
    return metrics.get("yes_no_acc") if run.dataset == "strategyqa" and metrics.get("yes_no_acc") else metrics.get("em")


def figures_table(runs: Sequence[EvaluatedRun]) -> Table:
    """All metrics and usage of the runs' summaries, one row per run."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.summary["metrics"]))
    usage = list(dict.fromkeys(name for run in runs for name in run.summary["usage"]))
    rows = [
        [run.name, run.prompt, str(run.summary["n"]), str(run.summary["n_failed"]),
         *(_percent(run.summary["metrics"].get(name)) for name in metrics),
         *(_number(run.summary["usage"].get(name)) for name in usage)]
        for run in runs
    ]  # fmt: skip
    header = ["run", "prompt", "questions", "failed", *(f"{name} %" for name in metrics), *usage]
    return Table("All figures, means per question", header, rows)


def samples_table(runs: Sequence[EvaluatedRun]) -> Table:
    """avg@n, pass@k and maj@n of the runs with several answers to a question."""
    several = [run for run in runs if run.summary.get("samples")]
    names = list(dict.fromkeys(name for run in several for name in run.summary["samples"]))
    rows = [
        [run.name, str(run.summary["n"]), str(run.num_samples),
         *(_percent(run.summary["samples"].get(name)) for name in names)]
        for run in several
    ]  # fmt: skip
    return Table(
        "Several answers to a question, % [95 % interval over questions]", ["run", "questions", "answers", *names], rows
    )


def curves(runs: Sequence[EvaluatedRun]) -> dict[str, list[EvaluatedRun]]:
    """The runs with a step, in the order of the steps, by data set, split, method, conditions and note."""
    found: dict[str, list[EvaluatedRun]] = defaultdict(list)
    for run in runs:
        if run.step is not None:
            note = _STEP_NOTE.sub("", run.summary["save_note"])
            parts = (run.dataset, run.summary.get("split"), run.summary["method"], run.conditions, note)
            found[" ".join(filter(None, parts))].append(run)
    return {name: sorted(each, key=lambda run: run.step or 0) for name, each in found.items()}


def curve_table(runs: Sequence[EvaluatedRun]) -> Table:
    """The metrics of each checkpoint of a training run."""
    curved = [(name, run) for name, each in curves(runs).items() for run in each]
    metrics = list(dict.fromkeys(metric for _, run in curved for metric in run.summary["metrics"]))
    rows = [
        [name, str(run.step), str(run.summary["n"]),
         *(_percent(run.summary["metrics"].get(metric)) for metric in metrics),
         _number(run.summary["usage"].get("searches"))]
        for name, run in curved
    ]  # fmt: skip
    header = ["evaluation", "step", "questions", *(f"{metric} %" for metric in metrics), "searches"]
    return Table("Over the steps of training", header, rows)


def comparison_table(runs: Sequence[EvaluatedRun]) -> Table:
    """Every pair of runs on the same questions: difference of EM, interval, and p of a paired permutation test."""
    return Table(
        "Paired on the same questions: EM of the second minus the first, in points",
        ["first", "second", "questions", "difference", "p"],
        list(_comparisons(runs)),
    )


def _comparisons(runs: Sequence[EvaluatedRun]) -> Iterator[list[str]]:
    for first, second in combinations(runs, 2):
        shared = sorted(first.em_by_id.keys() & second.em_by_id.keys())
        if first.dataset != second.dataset or not shared:
            continue
        result = compare_paired([first.em_by_id[i] for i in shared], [second.em_by_id[i] for i in shared])
        difference = _percent(result.difference._asdict(), sign="+")
        yield [first.name, second.name, str(len(shared)), difference, p_value(result.p_value)]


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _percent(figure: Mapping[str, Any] | None, sign: str = "") -> str:
    if figure is None:
        return ""
    mean = f"{100 * figure['mean']:{sign}.2f}"
    return mean if figure["low"] is None else f"{mean} [{100 * figure['low']:.2f}, {100 * figure['high']:.2f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def as_markdown(table: Table) -> str:
    """A Markdown table under its title; "" for an empty table."""
    return f"**{table.title}**\n\n{markdown_table(table.header, table.rows)}" if table.rows else ""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One line per row; all columns but the first are aligned to the right.

    >>> print(markdown_table(["type", "MB"], [["Flat", "59"]]))
    | type | MB |
    | --- | ---: |
    | Flat | 59 |
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(map(_markdown_row, [header, rule, *rows]))


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def as_html(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "".join(_html_row(row, number in table.published) for number, row in enumerate(table.rows))
    return f"<h2>{escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_row(cells: Sequence[str], published: bool) -> str:
    row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr class="published">{row}</tr>' if published else f"<tr>{row}</tr>"


def format_table(summary: Mapping[str, Any]) -> str:
    """Every metric with its 95 % interval; usage is the mean over answered questions."""
    groups = {"all": summary, **{f"{hops}-hop": row for hops, row in summary.get("by_hops", {}).items()}}
    control = summary.get("search_control", SearchControl.NONE)
    under = f" under search_control={control}" if control != SearchControl.NONE else ""
    under += " with tell_budget=true" if summary.get("tell_budget") else ""
    lines = [f"{summary['method']} on {summary['dataset']} {summary['split'] or ''}".rstrip() + under]
    for label, group in groups.items():
        lines.append(f"  {label}: n {group['n']}, failed {group['n_failed']}, missing {group['n_missing']}")
        figures_of = {**group["metrics"], **group.get("samples", {})}
        lines += [f"    {name:<24}{_summary_cell(figures)}" for name, figures in figures_of.items()]
        lines += [f"    {name:<24}{value:.6g}" for name, value in group["usage"].items()]
    return "\n".join(lines)


def _summary_cell(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "applies to no question"
    interval = f"  [{figures['low']:.4f}, {figures['high']:.4f}]" if figures["low"] is not None else ""
    return f"{figures['mean']:.4f}{interval}  n {figures['n']}"
