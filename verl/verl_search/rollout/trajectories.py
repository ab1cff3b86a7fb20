"""The trajectories of a run on disk: JSON lines, appended by each worker process to files of its own, read by anyone.

    <directory>/<train|val>/step_000010.<writer>.jsonl.gz
    <directory>/violations/                                 episodes that were not token-exact: each stopped the run

Each process writes files of its own, so nothing is locked. After a kill every whole line can be read: by
`read_trajectories` at any time, and by `pandas.read_json(path, lines=True)` after `cut_torn_tails`, which every start
calls. Does not cover: the content of a line (flashrag.episode.record), the writing of lines (flashrag.system).
"""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from flashrag.episode import Failure, InvariantViolation, Trajectory
from flashrag.errors import ReSearchError, UserError
from flashrag.system.json_lines import append_line, cut_torn_tail, read_lines

_FILE_NAME = re.compile(r"step_(\d{6,})\.[0-9a-f]+\.jsonl\.gz")
# A kill tears at most the file that each worker was writing.
_FILES_TO_MEND = 256


class TrajectoryNotWritten(ReSearchError):
    """A trajectory could not be written to the disk."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Which steps stay on disk: each multiple of `keep_every`, and the newest `keep_last`."""

    keep_every: int = 1
    keep_last: int = 2

    def expired(self, steps: set[int], current: int) -> set[int]:
        """The steps to delete while `current` is being written.

        A later step is the remainder of a run that was killed and resumed before it; it stays until it is overtaken.
        """
        newest = sorted(step for step in steps | {current} if step <= current)[-self.keep_last :]
        return {step for step in steps if step < current and step % self.keep_every and step not in newest}


class TrajectoryWriter:
    """Appends trajectories to this process's files from a thread of its own; the event loop only hands them over."""

    def __init__(self, directory: Path, retention: Retention):
        self.directory = directory
        self.retention = retention
        self._name = uuid4().hex[:12]
        self._step_by_split: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trajectories")

    async def write(self, trajectory: Trajectory) -> None:
        """Write a trajectory, which must have a split and a step; after the return no kill can lose it.

        Raises `TrajectoryNotWritten`; the file is then unchanged.
        """
        await asyncio.wrap_future(self._thread.submit(self._write, trajectory))

    def _write(self, trajectory: Trajectory) -> None:
        split, step = trajectory.split, trajectory.step
        assert split is not None and step is not None, "the trainer knows the split and the step of its episodes"
        path = self.directory / split / f"step_{step:06d}.{self._name}.jsonl.gz"
        try:
            if self._step_by_split.get(split) != step:
                path.parent.mkdir(parents=True, exist_ok=True)
                delete_expired(path.parent, step, self.retention)
                self._step_by_split[split] = step
            append_line(path, trajectory.to_json())
        except OSError as error:
            raise TrajectoryNotWritten(
                f"a trajectory cannot be written to {path} ({error}); make room there, or set search.trajectory_dir"
            ) from error


def write_violation(directory: Path, violation: InvariantViolation, **fields: Any) -> Path:
    """Write the trajectory of a violated invariant to a file of its own and return its path."""
    path = directory / "violations" / f"{uuid4().hex[:12]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    error = Failure(type(violation).__name__, str(violation))
    path.write_bytes(Trajectory.of_episode(violation.episode, error=error, **fields).to_json())
    return path


def delete_expired(folder: Path, current: int, retention: Retention) -> None:
    """Delete the files of expired steps in one split's folder; several processes may do so at once."""
    steps = {path: _step_of(path) for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name)}
    expired = retention.expired(set(steps.values()), current)
    for path, step in steps.items():
        if step in expired and path.is_file():
            path.unlink(missing_ok=True)


def trajectory_files(directory: Path, split: str = "*", step: int | None = None) -> list[Path]:
    """The files of a run: train before val, by step."""
    found = [path for path in directory.glob(f"{split}/step_*.jsonl.gz") if _FILE_NAME.fullmatch(path.name)]
    chosen = [path for path in found if step is None or _step_of(path) == step]
    return sorted(chosen, key=lambda path: (path.parent.name, _step_of(path), path.name))


def read_trajectories(directory: Path, split: str = "*", step: int | None = None) -> Iterator[Trajectory]:
    """The trajectories of a run's files; raises `UserError` for a damaged file. A torn last line is left out."""
    for path in trajectory_files(directory, split, step):
        yield from read_file(path)


def read_file(path: Path) -> Iterator[Trajectory]:
    """The trajectories of one file, of a run or of an evaluation; as `read_trajectories`."""
    for line in read_lines(path):
        try:
            yield Trajectory.from_json(line)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def read_run(folder: Path) -> Iterator[Trajectory]:
    """The trajectories of a training run or an evaluation; nothing if the folder holds neither.

    `folder` is that of the run, of a demo, or the one that `search.trajectory_dir` names.
    """
    if (items := folder / "items.jsonl").is_file():
        yield from read_file(items)
        return
    for directory in (folder / "trajectories", folder / "training" / "trajectories", folder):
        if trajectory_files(directory):
            yield from read_trajectories(directory)
            return


def cut_torn_tails(directory: Path) -> list[Path]:
    """Cut half-written lines off the newest files, and return these files. Nothing else may write them meanwhile."""
    newest = sorted(trajectory_files(directory), key=lambda path: path.stat().st_mtime)[-_FILES_TO_MEND:]
    return [path for path in newest if path.is_file() and cut_torn_tail(path)]


def _step_of(path: Path) -> int:
    match = _FILE_NAME.fullmatch(path.name)
    assert match is not None, f"{path} was chosen by its name"
    return int(match[1])
