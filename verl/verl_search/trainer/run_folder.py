"""What the trainer leaves in the folder of a run for other programs: the logged metrics, and why it ended.

    metrics/<start>.jsonl   verl's file logger: one line a step, one file for each start of the trainer
    ended.json              why the last start of the trainer failed or stopped, with its exit code

Does not cover: the checkpoints (checkpoints.py, export.py), the trajectories (rollout/trajectories.py).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flashrag.errors import ReSearchError
from flashrag.system.files import staged
from flashrag.system.json_lines import GrowingFile

METRICS_FOLDER = "metrics"
END_FILE = "ended.json"


class MetricFiles:
    """The metrics of a run and of its resumptions, in the order of writing; each call reads only what is new."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._files: dict[Path, GrowingFile] = {}

    def news(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each step that was logged since the last call, with its metrics."""
        for path in sorted(self.directory.glob("*.jsonl")):
            for line in self._files.setdefault(path, GrowingFile(path)).new_lines():
                try:
                    entry = json.loads(line)
                except ValueError:  # a full disk cut the line short
                    continue
                yield int(entry["step"]), entry["data"]


def read_metrics(directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each logged step of a run with its metrics; a step that was trained twice comes twice."""
    return MetricFiles(directory).news()


class End(NamedTuple):
    """Why a trainer ended before its last step, for the user, and the exit code that says the same to programs."""

    reason: str
    exit_code: int


def write_end(folder: Path, error: ReSearchError) -> None:
    """Note why the trainer ends, whole or not at all; a folder that does not exist is left alone."""
    if folder.is_dir():
        with staged(folder / END_FILE) as unfinished:
            unfinished.write_text(json.dumps(End(str(error), error.exit_code)._asdict()), encoding="utf-8")


def read_end(folder: Path) -> End | None:
    """What `write_end` noted, None where there is no note: the trainer was killed, or has not ended."""
    path = folder / END_FILE
    return End(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def forget_end(folder: Path) -> None:
    """Remove the note of an earlier trainer before a new one starts."""
    (folder / END_FILE).unlink(missing_ok=True)
