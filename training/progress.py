"""A training run on the console: one line a step, from the metrics that verl's file logger writes, and its notices.

verl prints every metric of a step in one long line; that stays in the log file. Does not cover: wandb, TensorBoard.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_search.trainer.metric_files import read_metrics
from verl_search.trainer.stopping import NOTICE

HEADER = (
    " step | reward |    EM | format | searches | tokens sampled + spliced | "
    "seconds: rollout (engine idle) / log-probs / update / all"
)


def step_line(step: int, total_steps: int | None, metrics: Mapping[str, Any]) -> str:
    """One training step for people; "" for an entry that holds no training step (the validation before training)."""
    if "rollout/searches" not in metrics:
        return ""
    rollout_s = metrics["timing_s/gen"]
    log_prob_s = metrics.get("timing_s/old_log_prob", 0.0) + metrics.get("timing_s/ref", 0.0)
    of_total = f"/{total_steps}" if total_steps else ""
    return (
        f"{step:>4}{of_total} | {metrics['critic/score/mean']:6.3f} | {metrics['rollout/em']:5.3f} | "
        f"{metrics['rollout/format_rate']:6.2f} | {metrics['rollout/searches']:8.2f} | "
        f"{metrics['rollout/response_tokens_sampled']:14.0f} + {metrics['rollout/response_tokens_spliced']:<7.0f} | "
        f"{rollout_s:5.1f} ({idle_s(metrics):.1f}) / {log_prob_s:.1f} / {metrics['timing_s/update_actor']:.1f} / "
        f"{metrics['timing_s/step']:.1f}"
    )


def idle_s(metrics: Mapping[str, Any]) -> float:
    """How long in the rollout phase no engine had anything to do: every episode searched, or had not yet begun."""
    return max(0.0, metrics["timing_s/gen"] - metrics["rollout/engine_busy_s"])


def validation_line(step: int, metrics: Mapping[str, Any]) -> str:
    """The validation in an entry for people: exact match and searches of each data source; "" when there is none."""
    parts = []
    for key, value in metrics.items():
        section, _, rest = key.partition("/")
        if section.startswith("val") and rest.endswith("/em/mean@1"):
            source = rest.split("/")[0]
            searches = metrics.get(f"val-aux/{source}/searches/mean@1", float("nan"))
            parts.append(f"{source}: EM {value:.3f}, {searches:.2f} searches")
    return f"{step:>4} validation: {'; '.join(parts)}" if parts else ""


class ProgressPrinter:
    """Prints what has been logged since it last looked."""

    def __init__(self, metrics_dir: Path, total_steps: int | None = None):
        self.metrics_dir = metrics_dir
        self.total_steps = total_steps
        # What an earlier, interrupted run logged has been seen.
        self.printed = sum(1 for _ in read_metrics(metrics_dir))
        self.header_due = True

    def print_news(self) -> None:
        for number, (step, metrics) in enumerate(read_metrics(self.metrics_dir)):
            if number < self.printed:
                continue
            self.printed += 1
            if line := step_line(step, self.total_steps, metrics):
                if self.header_due:
                    print(HEADER, flush=True)
                    self.header_due = False
                print(line, flush=True)
            if line := validation_line(step, metrics):
                print(line, flush=True)


class NoticePrinter:
    """Prints what the trainer's processes said to the user in the log since it last looked."""

    def __init__(self, log_path: Path):
        self.log_path = log_path
        # What an earlier run said has been seen.
        self.read_bytes = log_path.stat().st_size if log_path.is_file() else 0

    def print_news(self) -> None:
        if not self.log_path.is_file():
            return
        with self.log_path.open("rb") as log:
            log.seek(self.read_bytes)
            # A line that is being written is left for the next time.
            written = log.read().rpartition(b"\n")
        self.read_bytes += len(written[0]) + len(written[1])
        for line in written[0].decode("utf-8", errors="replace").split("\n"):
            _, marked, notice = line.partition(NOTICE)  # behind Ray's name of the process
            if marked:
                print(notice.rstrip(), flush=True)
