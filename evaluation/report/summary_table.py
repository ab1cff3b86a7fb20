"""A summary as a few lines of text: one row for all questions, one for each number of hops."""

from collections.abc import Mapping
from typing import Any


def format_table(summary: Mapping[str, Any]) -> str:
    """Every metric with its 95 % interval; usage is the mean of an answered question."""
    groups = {"all": summary, **{f"{hops}-hop": row for hops, row in summary.get("by_hops", {}).items()}}
    lines = [f"{summary['method']} on {summary['dataset']} {summary['split'] or ''}".rstrip()]
    for label, group in groups.items():
        lines.append(f"  {label}: n {group['n']}, failed {group['n_failed']}, missing {group['n_missing']}")
        lines += [f"    {name:<24}{_cell(figures)}" for name, figures in group["metrics"].items()]
        lines += [f"    {name:<24}{value:.6g}" for name, value in group["usage"].items()]
    return "\n".join(lines)


def _cell(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "applies to no question"
    interval = f"  [{figures['low']:.4f}, {figures['high']:.4f}]" if figures["low"] is not None else ""
    return f"{figures['mean']:.4f}{interval}  n {figures['n']}"
