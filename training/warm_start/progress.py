"""The warm start on the console: one line a step, from the metrics that verl's file logger writes."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_search.trainer.run_folder import MetricFiles

HEADER = " step | loss   | held-out loss | learning rate | tokens | seconds"


class LossPrinter:
    """Prints the steps that have been logged since it last looked."""

    def __init__(self, metrics_dir: Path) -> None:
        self._metrics = MetricFiles(metrics_dir)
        list(self._metrics.news())  # an earlier run, which was interrupted, has printed these
        self._header_due, self._last = True, time.monotonic()

    def print_news(self) -> None:
        for step, metrics in self._metrics.news():
            now = time.monotonic()
            if self._header_due:
                print(HEADER, flush=True)
                self._header_due = False
            print(step_line(step, metrics, now - self._last), flush=True)
            self._last = now


def step_line(step: int, metrics: Mapping[str, Any], seconds: float) -> str:
    """One step, or one measurement of the held-out loss, for people."""
    if (held_out := metrics.get("val/loss")) is not None:
        return f"{step:>5} | {'':6} | {held_out:13.4f} |"
    loss = metrics.get("train/loss", float("nan"))
    rate, tokens = metrics.get("train/lr", float("nan")), metrics.get("train/global_tokens", 0)
    return f"{step:>5} | {loss:6.4f} | {'':13} | {rate:13.1e} | {tokens:6.0f} | {seconds:7.1f}"
