"""A training run on the console: one line a step, from the metrics that verl's file logger writes, and its notices.

verl prints every metric of a step in one long line; that stays in the log file. Does not cover: wandb, TensorBoard.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashrag.system.json_lines import GrowingFile
from verl_search.trainer.run_folder import MetricFiles
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
    # A critic counts too: it says values where the others say log-probabilities.
    log_prob_s, update_s = (
        sum(metrics.get(f"timing_s/{part}", 0.0) for part in parts)
        for parts in (("old_log_prob", "ref", "values"), ("update_critic", "update_actor"))
    )
    of_total = f"/{total_steps}" if total_steps else ""
    idle = idle_s(metrics)
    return (
        f"{step:>4}{of_total} | {metrics['critic/score/mean']:6.3f} | {metrics['rollout/em']:5.3f} | "
        f"{metrics['rollout/format_rate']:6.2f} | {metrics['rollout/searches']:8.2f} | "
        f"{metrics['rollout/response_tokens_sampled']:14.0f} + {metrics['rollout/response_tokens_spliced']:<7.0f} | "
        f"{rollout_s:5.1f} ({'-' if idle is None else f'{idle:.1f}'}) / {log_prob_s:.1f} / {update_s:.1f} / "
        f"{metrics['timing_s/step']:.1f}"
    )


def idle_s(metrics: Mapping[str, Any]) -> float | None:
    """Seconds of the rollout phase in which no engine had work: each episode was searching or had not begun.

    None where groups were left out (`algorithm.filter_groups`): the engine's work on them is not known.
    """
    if any(metrics.get(f"training/filter_groups/{name}_samples") for name in ("evicted", "discarded_surplus")):
        return None
    return max(0.0, metrics["timing_s/gen"] - metrics["rollout/engine_busy_s"])


def validation_line(step: int, metrics: Mapping[str, Any]) -> str:
    """A validation for people: exact match and searches of each data source; "" where the entry holds none."""
    parts = []
    for key, value in metrics.items():
        section, _, rest = key.partition("/")
        source, is_em, answers = rest.partition("/em/mean@")  # over so many answers to each question
        if section.startswith("val") and is_em:
            searches = metrics.get(f"val-aux/{source}/searches/mean@{answers}", float("nan"))
            parts.append(f"{source}: EM {value:.3f}, {searches:.2f} searches")
    return f"{step:>4} validation: {'; '.join(parts)}" if parts else ""


class ProgressPrinter:
    """Prints the steps that have been logged since it last looked."""

    def __init__(self, metrics_dir: Path, total_steps: int | None = None):
        self.total_steps = total_steps
        self.header_due = True
        self._metrics = MetricFiles(metrics_dir)
        list(self._metrics.news())  # an earlier run, which was interrupted, has printed these

    def print_news(self) -> None:
        for step, metrics in self._metrics.news():
            if line := step_line(step, self.total_steps, metrics):
                if self.header_due:
                    print(HEADER, flush=True)
                    self.header_due = False
                print(line, flush=True)
            if line := validation_line(step, metrics):
                print(line, flush=True)


class NoticePrinter(GrowingFile):
    """Prints the notices for the user that the trainer's processes have logged since it last looked."""

    def __init__(self, log_path: Path):
        # An earlier run has printed the notices that are in the log already.
        super().__init__(log_path, from_byte=log_path.stat().st_size if log_path.is_file() else 0)

    def print_news(self) -> None:
        for line in self.new_lines():
            _, marked, notice = line.partition(NOTICE)  # Ray puts the name of the process before it
            if marked:
                print(notice.rstrip(), flush=True)


class SilencePrinter:
    """Says, once for each silence, that the trainer has written nothing for long: a step may be long, or hang."""

    def __init__(self, log_path: Path, limit_s: float = 1800.0):
        self.log_path, self.limit_s = log_path, limit_s
        self._size, self._since, self._told = -1, time.monotonic(), False

    def print_news(self) -> None:
        size = self.log_path.stat().st_size if self.log_path.is_file() else 0
        if size != self._size:
            self._size, self._since, self._told = size, time.monotonic(), False
        elif not self._told and time.monotonic() - self._since > self.limit_s:
            self._told = True
            print(
                f"the trainer has written nothing to {self.log_path} for {self.limit_s / 60:.0f} minutes; it is not "
                "stopped. As root, .venv/bin/py-spy dump --pid PID shows what one of its processes does",
                flush=True,
            )
