"""The trainer's files for other programs in the folder of a run: the logged metrics, and the reason why it ended.

    metrics/<start>.jsonl   verl's file logger: one line a step, one file for each start of the trainer
    trained_prompt.json     the prompt of the last start (flashrag.prompts), also beside each checkpoint
    ended.json              why the last start of the trainer failed or stopped, with its exit code
    hydra/                  Hydra's: the config of the last start

Does not cover: the checkpoints (checkpoints.py, export.py), the trajectories (rollout/trajectories.py).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flashrag.client import SearchControl
from flashrag.errors import ReSearchError, UserError
from flashrag.system.files import write_text
from flashrag.system.json_lines import GrowingFile

METRICS_FOLDER = "metrics"
END_FILE = "ended.json"
LATEST = "latest_checkpointed_iteration.txt"  # verl's: the step of the last checkpoint


def last_step(folder: Path) -> int | None:
    """The step of the run's last checkpoint; None if there is none that the same command would resume from."""
    try:
        step = noted_step(folder)
    except UserError:
        return None
    return step if (folder / f"global_step_{step}").is_dir() else None


def noted_step(folder: Path) -> int | None:
    """The step that verl noted as the last one saved, None without a note; raises `UserError` for a damaged one."""
    try:
        note = (folder / LATEST).read_bytes().strip()
    except OSError:
        return None
    if not note.isdigit():
        raise UserError(
            f"{folder / LATEST} holds {note[:20]!r}, expected the number of a step; write that of the last "
            "global_step_N into it"
        )
    return int(note)


def kept_control(folder: Path) -> str | None:
    """The control of searches in the last start of a run, or of a demo's; None if the folder keeps no config of it."""
    control = kept_setting(folder, "search.control", SearchControl.NONE)
    return None if control is None else str(control)


def kept_setting(folder: Path, key: str, default: object) -> Any:
    """The value of a key in the last start of a run, `default` if that start had no such key; None as above."""
    places = (place / "hydra" / ".hydra" / "config.yaml" for place in (folder, folder / "training", folder.parent))
    if (path := next(filter(Path.is_file, places), None)) is None:
        return None
    try:
        return OmegaConf.select(OmegaConf.load(path), key, default=default)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}, the config of the last start, cannot be read ({reason}); remove it") from error


class MetricFiles:
    """The metrics of a run and of its resumptions, in the order of writing; each call reads only the new ones."""

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
    """Each logged step of a run with its metrics; a step that was trained twice is given twice."""
    return MetricFiles(directory).news()


class End(NamedTuple):
    """The reason why a trainer ended before its last step, and its exit code."""

    reason: str
    exit_code: int


def write_end(folder: Path, error: ReSearchError) -> None:
    """Write the reason of the trainer's end, completely or not at all; does nothing if the folder does not exist."""
    if folder.is_dir():
        write_text(folder / END_FILE, json.dumps(End(str(error), error.exit_code)._asdict()))


def read_end(folder: Path) -> End | None:
    """The note of `write_end`; None without one, because the trainer was killed or has not ended."""
    path = folder / END_FILE
    return End(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def forget_end(folder: Path) -> None:
    """Remove the note of an earlier trainer before a new one starts."""
    (folder / END_FILE).unlink(missing_ok=True)
