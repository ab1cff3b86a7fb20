"""The best checkpoint of a run, kept beside the rotating ones: `<save_path>/best_checkpoint/global_step_N`.

It is made of hard links, so that it costs no copying, and no room until the checkpoint that it was made of is rotated
away. Does not cover: checkpoints that verl writes in the background, and those of machines that share no disk.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "best_checkpoint"
SCORE_FILE = "score.json"


@dataclass(frozen=True, slots=True)
class BestCheckpoint:
    """Which step's checkpoint is the best one, by which metric's value."""

    step: int
    metric: str
    score: float


def best_checkpoint_path(save_path: Path, best: BestCheckpoint) -> Path:
    """The folder to resume from; verl reads the step out of its name."""
    return save_path / FOLDER / f"global_step_{best.step}"


def read_best_checkpoint(save_path: Path) -> BestCheckpoint | None:
    """The best checkpoint that lies in the folder of a run, if there is one."""
    try:
        best = BestCheckpoint(**json.loads((save_path / FOLDER / SCORE_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    return best if best_checkpoint_path(save_path, best).is_dir() else None


def keep_if_best(save_path: Path, candidate: BestCheckpoint) -> BestCheckpoint:
    """Keep the checkpoint of `candidate.step` if none is better; the best one. A crash leaves the one before."""
    best = read_best_checkpoint(save_path)
    if best is not None and best.metric == candidate.metric and best.score > candidate.score:
        return best
    folder = save_path / FOLDER
    unfinished, target = folder / "unfinished", best_checkpoint_path(save_path, candidate)
    for stale in (unfinished, target):
        shutil.rmtree(stale, ignore_errors=True)
    shutil.copytree(save_path / target.name, unfinished, copy_function=_link)
    unfinished.rename(target)
    score_file = folder / f"{SCORE_FILE}.new"
    score_file.write_text(json.dumps(asdict(candidate)), encoding="utf-8")
    score_file.replace(folder / SCORE_FILE)
    for former in folder.glob("global_step_*"):
        if former != target:
            shutil.rmtree(former, ignore_errors=True)
    return candidate


def _link(source: str, target: str) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)  # a disk without hard links
