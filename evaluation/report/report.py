"""`run_eval.py report RUN… [--out DIR]`: one HTML page and a Markdown table over evaluation and training runs.

A RUN is the folder of an evaluation (items.jsonl) or of a training run (trajectories/). For a training run, the page
shows sampled and spliced text and the loss mask of each rollout. The folder of a run is only read.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.report.memory import memory_tables, search_or_memory
from evaluation.report.page import Decode, Run, render_page, verdict
from evaluation.report.tables import (
    EvaluatedRun,
    as_html,
    as_markdown,
    comparison_table,
    curve_table,
    curves,
    figures_table,
    overview_table,
    samples_table,
)
from evaluation.run.folder import CONFIG_FILE, ITEMS, SUMMARY_FILE, SUMMARY_KEYS, read_items, read_json
from flashrag.config import read_yaml_mapping
from flashrag.episode import Trajectory
from flashrag.errors import UserError, exit_on_user_error
from flashrag.preflight import Finding, Severity, enforce
from flashrag.prompts import read_record
from flashrag.system.arguments import CommandParser
from flashrag.system.files import write_text

EXPECTED = f"expected the folder of an evaluation ({ITEMS}) or of a training run (trajectories/)"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="evaluation/run_eval.py report",
        description="One self-contained HTML page and a Markdown table over runs.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=EXPECTED.removeprefix("expected "))
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder of the report")
    parser.add_argument("--title", default="ReSearch report", help="heading of the page")
    parser.add_argument(
        "--tokenizer", metavar="PATH",
        help="model folder; the page then shows each token of a training run with its log-prob (default: text only)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    names = _names(arguments.runs)
    decode = _decoder(arguments.tokenizer) if arguments.tokenizer else None
    evaluations: list[EvaluatedRun] = []
    shown: list[Run] = []
    unreadable: list[Finding] = []
    for name, folder in zip(names, arguments.runs, strict=True):
        print(f"reading {folder} …", file=sys.stderr, flush=True)
        try:
            if (folder / ITEMS).is_file():
                run, trajectories = _read_evaluation(name, folder)
                evaluations.append(run)
                control = run.control
            else:
                trajectories, control = _read_rollouts(folder)
        except UserError as reason:
            unreadable.append(Finding(Severity.ERROR, str(reason), "report.run"))
            continue
        shown.append(Run(name, trajectories, decode, control, read_record(folder)))
    enforce(unreadable)
    write(arguments.out, arguments.title, evaluations, shown)
    return 0


def write(out: Path, title: str, evaluations: Sequence[EvaluatedRun], shown: Sequence[Run]) -> None:
    """Write the report's files into `out`, each atomically, and print the tables."""
    from evaluation.report.plots import curve_plots, plots  # matplotlib takes a second

    builders = (overview_table, curve_table, samples_table, figures_table, comparison_table)
    tables = [build(evaluations) for build in builders] if evaluations else []
    figures = search_or_memory(shown, evaluations)
    tables += memory_tables(figures)
    notes = _notes(shown)
    markdown = "\n\n".join([f"# {title}", *(as_markdown(table) for table in tables), *notes]) + "\n"
    shown_plots = [*curve_plots(curves(evaluations)), *plots(shown)]
    html = render_page(title, "".join(as_html(table) for table in tables), notes, shown_plots, shown)
    numbers = json.dumps(figures, indent=2) + "\n"
    for name, text in (("report.html", html), ("report.md", markdown), ("search_or_memory.json", numbers)):
        write_text(out / name, text)
    print(markdown)
    print(f"written: {out / 'report.html'} ({len(html) / 1e6:.1f} MB), report.md and search_or_memory.json")


def _notes(shown: Sequence[Run]) -> list[str]:
    trajectories = sum(len(run.trajectories) for run in shown)
    failed = sum(verdict(trajectory) == "failed" for run in shown for trajectory in run.trajectories)
    notes = [f"Runs: {len(shown)}; trajectories: {trajectories}."]
    notes += [f"{run.name} was trained with the prompt {run.prompt}." for run in shown if run.prompt]
    if failed:
        several = any(trajectory.session for run in shown for trajectory in run.trajectories)
        what = "answers" if several else "questions"
        notes.append(f"{failed} {what} failed and count as wrong. Repeat the run with --resume to ask them again.")
    return notes


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names. A demo's `training` folder, and a name that occurs twice, get the parent's name in front."""
    resolved = [folder.resolve() for folder in folders]
    short = [folder.name for folder in resolved]
    return [
        name if short.count(name) == 1 and name not in ("training", "trajectories") else f"{folder.parent.name}/{name}"
        for name, folder in zip(short, resolved, strict=True)
    ]


def _read_evaluation(name: str, folder: Path) -> tuple[EvaluatedRun, list[Trajectory]]:
    for name_of_file in (SUMMARY_FILE, CONFIG_FILE):
        if not (folder / name_of_file).is_file():
            raise UserError(f"{folder / name_of_file} is missing: the run has not ended; repeat its command")
    summary, config = read_json(folder / SUMMARY_FILE, SUMMARY_KEYS), read_yaml_mapping(folder / CONFIG_FILE)
    trajectories = list(read_items(folder))
    right: dict[str, list[bool]] = defaultdict(list)  # of the answers to each question
    for trajectory in trajectories:
        right[trajectory.question_id].append(verdict(trajectory) == "right")
    wanted = summary.get("num_samples", 1)  # an interrupted run has fewer answers to some questions
    scores = {key: sum(answers) / wanted for key, answers in right.items() if len(answers) == wanted}
    return EvaluatedRun(name, {**summary, "save_note": config.get("save_note")}, scores), trajectories


def _read_rollouts(folder: Path) -> tuple[list[Trajectory], str | None]:
    # Imported here: an environment that only evaluates need not have the trainer's plugin.
    from verl_search.rollout.trajectories import read_run
    from verl_search.trainer.run_folder import kept_control

    if trajectories := list(read_run(folder)):
        return trajectories, kept_control(folder)
    raise UserError(f"{folder} holds no run; {EXPECTED}")


def _decoder(path: str) -> Decode:
    from flashrag.generator import load_tokenizer

    tokenizer = load_tokenizer(path)
    decode: Callable[..., str] = tokenizer.decode
    return lambda ids: decode(ids, skip_special_tokens=False)
