"""`run_eval.py compare RUN_A RUN_B`: tests whether two runs over the same questions really differ.

Compares each metric that both runs have, question by question; significance.py defines the test. A failed question
scores 0, as in every summary; a question to which a metric does not apply is left out. A question with several answers
has the mean of theirs.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from evaluation.run.folder import ITEMS, SUMMARY_FILE, read_items, read_json
from evaluation.scores.scoring import means_by_question
from evaluation.scores.significance import Comparison, compare_paired
from flashrag.errors import UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="evaluation/run_eval.py compare", description="Paired significance between two runs.")
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="the folder of a run, e.g. of a baseline")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="the folder of a run over the same questions")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    comparisons = compare_runs(arguments.run_a, arguments.run_b)
    if arguments.json:
        rows = {name: {**c._asdict(), "difference": c.difference._asdict()} for name, c in comparisons.items()}
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'metric':<24}{arguments.run_a.name} -> {arguments.run_b.name}")
    for name, c in comparisons.items():
        print(f"{name:<24}{_line(c)}")
    return 0


def _line(c: Comparison) -> str:
    low, high = c.difference.low, c.difference.high
    interval = f" [{low:+.4f}, {high:+.4f}]" if low is not None else ""
    return (
        f"{c.mean_a:.4f} -> {c.mean_b:.4f}  {c.difference.mean:+.4f}{interval}  p {c.p_value:.4f}  n {c.difference.n}"
    )


def compare_runs(run_a: Path, run_b: Path) -> dict[str, Comparison]:
    """Compare each metric of both runs; raises `UserError` unless both have answered the same questions."""
    scores_a, scores_b = _scores(run_a), _scores(run_b)
    if scores_a.keys() != scores_b.keys():
        both = len(scores_a.keys() & scores_b.keys())
        raise UserError(
            f"{run_a} has {len(scores_a)} questions, {run_b} has {len(scores_b)}, {both} are in both; "
            "a paired comparison needs two complete runs over the same questions"
        )
    every = [*scores_a.values(), *scores_b.values()]
    names = [name for name in every[0] if all(name in scores for scores in every)]
    if not names:
        raise UserError(
            f"{run_a} and {run_b} have no metric in common; repeat a run's command with the other's metrics"
        )
    return {name: compare_paired(*values) for name in names if all(values := _pairs(name, scores_a, scores_b))}


def _pairs(
    name: str, scores_a: dict[str, dict[str, float | None]], scores_b: dict[str, dict[str, float | None]]
) -> tuple[list[float], list[float]]:
    pairs = [(scores_a[key][name], scores_b[key][name]) for key in scores_a]
    applicable = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in applicable], [b for _, b in applicable]


def _scores(run: Path) -> dict[str, dict[str, float | None]]:
    if lacking := [name for name in (SUMMARY_FILE, ITEMS) if not (run / name).is_file()]:
        raise UserError(f"{run} holds no finished run (no {lacking[0]}); give the folder of a finished run")
    if missing := read_json(run / SUMMARY_FILE).get("n_missing"):
        raise UserError(f"{run} was interrupted and lacks {missing} answers; repeat its command to complete it")
    scores = means_by_question(read_items(run))
    if not scores:
        raise UserError(f"{run} holds no answered question")
    return scores
