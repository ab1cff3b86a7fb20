"""The figures of the recipe smollm2-nq: evaluations beside those of the warm start, and curves; docs/real_model.md.

    python scripts/bench/real_model.py --folder outputs/smollm2-nq --methods outputs/methods

Reads what `bash training/run.sh --recipe smollm2-nq` left, of every seed and control that is there, and what
scripts/bench/methods.py left. Into --out come evaluations.csv, steps.csv, curves.png and methods.csv; the tables of the
evaluations and of the methods are printed as Markdown.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from evaluation.report.memory import FOUND, search_or_memory
from evaluation.report.page import Run
from evaluation.report.tables import markdown_table
from evaluation.run.folder import SUMMARY_FILE, read_items, read_json
from evaluation.scores.comparison import compare_runs
from flashrag.errors import UserError, exit_on_user_error
from flashrag.pipeline import METHODS
from flashrag.system.arguments import flag, parse_options
from scripts.bench.report import Curve, draw_curves, write_csv
from verl_search.trainer.run_folder import METRICS_FOLDER, read_metrics

BEFORE = "before"  # the folder of the warm start's evaluations
SEED = "seed"  # begins the folder of a training without another change
CURVES = {  # by the name of a column: the metric, and the panel's title
    "reward": ("critic/score/mean", "Reward"),
    "em": ("rollout/em", "Exact match, sampled"),
    "format_rate": ("rollout/format_rate", "Valid format"),
    "searches": ("rollout/searches", "Searches"),
    "sampled_tokens": ("rollout/response_tokens_sampled", "Sampled tokens"),
}
COLUMNS = {  # of evaluations.csv, with the heading and the digits after the point in the printed table
    "run": ("run", 0),
    "questions": ("questions", 0),
    "n": ("n", 0),
    "em": ("EM", 1),
    "em_low": ("from", 1),
    "em_high": ("to", 1),
    "gain": ("more than before", 1),
    "p": ("p", 4),
    "f1": ("F1", 1),
    "acc": ("accuracy", 1),
    "em_if_found": ("EM if a passage holds the answer", 1),
    "found": ("a passage holds it", 1),
    "format_rate": ("valid format", 1),
    "searches": ("searches", 2),
    "tokens": ("sampled tokens", 0),
}
METHOD_COLUMNS = {  # of methods.csv
    "method": ("method", 0),
    "prompt": ("prompt", 0),
    "n": ("n", 0),
    "failed": ("failed", 0),
    "em": ("EM", 1),
    "em_low": ("from", 1),
    "em_high": ("to", 1),
    "f1": ("F1", 1),
    "acc": ("accuracy", 1),
    "empty": ("empty answers", 1),
    "searches": ("searches", 2),
    "generator_calls": ("model calls", 1),
    "tokens": ("sampled tokens", 0),
}
PERCENT = {"empty", "em", "em_low", "em_high", "gain", "f1", "acc", "em_if_found", "found", "format_rate"}


@dataclass(frozen=True, kw_only=True)
class RealModelOptions:
    """Collect the figures of every training of the recipe smollm2-nq in a folder."""

    folder: Path = flag("--output_dir of the recipe", Path("outputs/smollm2-nq"))
    methods: Path | None = flag("--out of scripts/bench/methods.py (default: no table of methods)", None)
    out: Path = flag("folder of the tables and of the curves", Path("outputs/real_model"))


def scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a summary that every table has, by the names of the columns."""
    metrics, usage = summary["metrics"], summary["usage"]
    return {
        "n": summary["n"],
        **{name: metrics[name]["mean"] for name in ("em", "f1", "acc")},
        "em_low": metrics["em"]["low"],
        "em_high": metrics["em"]["high"],
        "searches": usage["searches"],
        "tokens": usage["completion_tokens"],
    }


class Evaluation(NamedTuple):
    """A finished evaluation, of the warm start or of a training."""

    run: str
    questions: str
    folder: Path

    def row(self, before: Path | None) -> dict[str, Any]:
        """The figures, by the names of the columns; with those of the comparison, if it is another than `before`."""
        summary, trajectories = read_json(self.folder / SUMMARY_FILE), list(read_items(self.folder))
        (figures,) = search_or_memory([Run(self.run, trajectories)], [])["runs"].values()
        found = figures["by_passages"].get(FOUND, {"n": 0, "em": None})
        row = {
            "run": self.run,
            "questions": self.questions,
            **scores(summary),
            "em_if_found": found["em"],
            "found": found["n"] / summary["n"],
            "format_rate": summary["format_rate"],
        }
        if before is None or before == self.folder:
            return row
        compared = compare_runs(before, self.folder)["em"]
        return {**row, "gain": compared.difference.mean, "p": compared.p_value}


def complete(summaries: Iterable[Path]) -> Iterator[Path]:
    """The folders of the evaluations that have asked all their questions; the others are named and left out."""
    for path in sorted(summaries):
        if missing := read_json(path)["n_missing"]:
            print(f"left out, {missing} questions are to be asked: {path.parent}")
        else:
            yield path.parent


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The figures of every evaluation in the recipe's folder, set by set; raises `UserError` where there is none."""
    places = complete(folder.glob(f"*/*/*/{SUMMARY_FILE}"))
    found = sorted(Evaluation(place.parts[-3], place.parts[-2], place) for place in places)
    if not found:
        raise UserError(f"--folder {folder} holds no evaluation; bash training/run.sh --recipe smollm2-nq makes them")
    before = {one.questions: one.folder for one in found if one.run == BEFORE}
    order = sorted(found, key=lambda one: (one.questions != "nq", one.questions, one.run != BEFORE))
    return [one.row(before.get(one.questions)) for one in order]


def read_methods(folder: Path) -> list[dict[str, Any]]:
    """The figures of every evaluation of scripts/bench/methods.py in a folder, in the order of the methods, the plain
    prompt first; raises `UserError` where there is none.
    """
    rows = []
    for place in complete(folder.glob(f"*/{SUMMARY_FILE}")):
        summary = read_json(place / SUMMARY_FILE)
        empty = [not trajectory.answer for trajectory in read_items(place)]
        asked = summary.get("prompt")  # None for `random`, which asks nothing
        rows.append({
            "method": summary["method"],
            "prompt": "" if asked is None else "chat" if asked["apply_chat"] else "plain",
            "failed": summary["n_failed"],
            **scores(summary),
            "empty": fmean(empty),
            "generator_calls": summary["usage"]["generator_calls"],
        })  # fmt: skip
    if not rows:
        raise UserError(f"--methods {folder} holds no evaluation; scripts/bench/methods.py makes them")
    return sorted(rows, key=lambda row: (list(METHODS).index(row["method"]), row["prompt"] == "chat"))


def read_steps(folder: Path) -> dict[str, list[dict[str, float]]]:
    """The curves of each training in the recipe's folder that has done a step, by its run; of a step that was trained
    twice, the later.
    """
    found = {}
    for metrics in sorted(folder.glob(f"*/training/{METRICS_FOLDER}")):
        steps = {
            step: {"step": step, **{name: values[key] for name, (key, _) in CURVES.items()}}
            for step, values in read_metrics(metrics)
            if all(key in values for key, _ in CURVES.values())
        }
        if steps:
            found[metrics.parts[-3]] = [steps[step] for step in sorted(steps)]
    return found


def mean_gains(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each set of questions: how much more EM the seeds have in the mean."""
    gains: dict[str, list[float]] = {}
    for row in rows:
        if row["run"].startswith(SEED) and "gain" in row:
            gains.setdefault(row["questions"], []).append(100 * row["gain"])
    for questions, found in gains.items():
        yield f"{questions}: EM {fmean(found):+.1f} points in the mean of the seeds ({len(found)})"


def shown(row: Mapping[str, Any], columns: Mapping[str, tuple[str, int]]) -> Iterator[str]:
    """The cells of a printed row: shares in percent."""
    for name, (_, digits) in columns.items():
        value = row.get(name)
        if value is None or isinstance(value, str):
            yield value or ""
        else:
            sign = "+" if name == "gain" else ""
            yield f"{value * (100 if name in PERCENT else 1):{sign}.{digits}f}"


def write_table(path: Path, columns: Mapping[str, tuple[str, int]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows to a file, and print them."""
    write_csv(path, list(columns), rows)
    headings = [heading for heading, _ in columns.values()]
    print(markdown_table(headings, [list(shown(row, columns)) for row in rows]))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(RealModelOptions, "python scripts/bench/real_model.py", argv)
    rows, runs = read_evaluations(options.folder), read_steps(options.folder)
    methods = [] if options.methods is None else read_methods(options.methods)
    options.out.mkdir(parents=True, exist_ok=True)
    steps = [{"run": run, **point} for run, points in runs.items() for point in points]
    write_csv(options.out / "steps.csv", ["run", "step", *CURVES], steps)
    titles = {name: title for name, (_, title) in CURVES.items()}
    draw_curves(options.out / "curves.png", titles, [Curve(run, points) for run, points in runs.items()])
    write_table(options.out / "evaluations.csv", COLUMNS, rows)
    for line in mean_gains(rows):
        print(line)
    if methods:
        write_table(options.out / "methods.csv", METHOD_COLUMNS, methods)
    return 0


if __name__ == "__main__":
    sys.exit(main())
