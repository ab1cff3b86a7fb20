"""The metrics of a run as verl's file logger keeps them: JSON lines, a file for each start of the trainer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METRICS_FOLDER = "metrics"  # in the run's folder; training/trainer_process.py has the logger write there


def read_metrics(directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each logged step with its metrics, over all files of a run and its resumptions, in the order of writing."""
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line that is being written
                continue
            yield int(entry["step"]), entry["data"]
