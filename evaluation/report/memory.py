"""Search or memory: how the right answers of a run depend on its searches, and what is left of them under a control.

A question whose text holds a gold answer proves nothing, nor does a right answer without a search, or after searches
that found no passage with a gold answer. Failed questions are left out of a run's figures.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from evaluation.report.page import Run, verdict
from evaluation.report.tables import EvaluatedRun, Table, p_value
from evaluation.scores.significance import mcnemar_exact
from flashrag.client import SearchControl
from flashrag.episode import Trajectory
from flashrag.metrics import answer_in_top_k, holds_answer

MOST_SEARCHES = 4  # more are counted together
FOUND, NOT_FOUND, UNDECIDED = "answer_found", "answer_not_found", "yes_no"
COLUMNS = {
    FOUND: "found passages hold the answer",
    NOT_FOUND: "no passage holds it",
    UNDECIDED: "yes/no",
    "answer_in_question": "the question holds it",
}
Figures = dict[str, dict[str, float]]  # by group: questions (n) and the share of right answers (em)


def search_or_memory(shown: Sequence[Run], evaluations: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """The figures of each run, and of each pair of a run and its control, as search_or_memory.json holds them."""
    runs = {run.name: {"search_control": run.control, **_figures(run.trajectories)} for run in shown}
    return {"runs": runs, "pairs": list(_pairs(evaluations))}


def _figures(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    answered = [trajectory for trajectory in trajectories if not trajectory.failed]
    searches: dict[str, list[bool]] = defaultdict(list)
    groups: dict[str, list[bool]] = {name: [] for name in COLUMNS}
    for trajectory in answered:
        right = verdict(trajectory) == "right"
        count = trajectory.usage.searches
        searches[str(count) if count < MOST_SEARCHES else f"{MOST_SEARCHES}+"].append(right)
        groups[_found(trajectory)].append(right)
        if holds_answer(trajectory.question, trajectory.gold_answers):
            groups["answer_in_question"].append(right)
    return {
        "n": len(answered),
        "by_searches": _means(dict(sorted(searches.items()))),
        "by_passages": _means(groups),
    }


def _means(groups: Mapping[str, Sequence[bool]]) -> Figures:
    return {name: {"n": len(all_), "em": sum(all_) / len(all_)} for name, all_ in groups.items() if all_}


def _found(trajectory: Trajectory) -> str:
    """Whether a search of the trajectory found a passage that holds a gold answer."""
    searches = ([p.contents for p in call.passages] for call in trajectory.calls if call.tool == "search")
    found = answer_in_top_k(searches, trajectory.gold_answers)
    return UNDECIDED if found is None else FOUND if found else NOT_FOUND


def _pairs(runs: Sequence[EvaluatedRun]) -> Iterator[dict[str, Any]]:
    """Each run without a control beside each control of the same method, model and data set, or zero-shot.

    A run whose model was told its budget is a control of one whose model was not; other pairs agree in that.
    """
    for run, other in product(runs, runs):
        same_method = other.summary["method"] == run.summary["method"]
        changed = other.control != SearchControl.NONE
        told, told_alone = other.tells_budget == run.tells_budget, other.tells_budget and not run.tells_budget
        is_control = same_method and (told if changed else told_alone)
        is_closed_book = other.summary["method"] == "zero-shot" and not same_method
        alike = run.dataset == other.dataset and run.summary.get("served_model") == other.summary.get("served_model")
        shared = run.em_by_id.keys() & other.em_by_id.keys()
        if run.num_samples > 1 or other.num_samples > 1:  # right or wrong is of one answer
            continue
        if run.control != SearchControl.NONE or not (is_control or is_closed_book) or not alike or not shared:
            continue
        right = [(run.em_by_id[i] == 1.0, other.em_by_id[i] == 1.0) for i in shared]
        only, only_control = right.count((True, False)), right.count((False, True))
        yield {
            "run": run.name,
            "control_run": other.name,
            "n": len(right),
            "right_in_both": right.count((True, True)),
            "right_in_run_only": only,
            "right_in_control_only": only_control,
            "right_in_neither": right.count((False, False)),
            "mcnemar_p": mcnemar_exact(only, only_control),
        }


def memory_tables(figures: Mapping[str, Any]) -> list[Table]:
    """The figures for people."""
    runs, pairs = figures["runs"], figures["pairs"]
    counts = sorted({count for run in runs.values() for count in run["by_searches"]})
    by_searches, by_passages = (
        [[name, run["search_control"] or "", str(run["n"]), *_cells(run[kind], columns)] for name, run in runs.items()]
        for kind, columns in (("by_searches", counts), ("by_passages", COLUMNS))
    )
    paired = [[*(str(cell) for cell in list(pair.values())[:-1]), p_value(pair["mcnemar_p"])] for pair in pairs]
    return [
        Table(
            "Search or memory: EM % (questions) by number of searches",
            ["run", "control", "answered", *counts],
            by_searches,
        ),
        Table(
            "Search or memory: EM % (questions) by what was found",
            ["run", "control", "answered", *COLUMNS.values()],
            by_passages,
        ),
        Table(
            "Search or memory: right with search and in its control, paired; p of McNemar's exact test",
            ["run", "control", "questions", "both", "only the run", "only the control", "neither", "p"],
            paired,
        ),
    ]


def _cells(figures: Figures, groups: Iterable[str]) -> Iterator[str]:
    for group in groups:
        found = figures.get(group)
        yield f"{100 * found['em']:.2f} ({found['n']})" if found else ""
