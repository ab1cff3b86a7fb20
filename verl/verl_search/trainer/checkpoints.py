"""The best checkpoint of a run, kept beside the rotating ones: `<save_path>/best_checkpoint/global_step_N`.

It consists of hard links, which take no time, and no room until verl removes the checkpoint that they link to.
Does not cover: checkpoints that verl writes in the background, and those of machines that share no disk.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flashrag.system.files import recover, staged, write_text

FOLDER = "best_checkpoint"
SCORE_FILE = "score.json"


@dataclass(frozen=True, slots=True)
class BestCheckpoint:
    """The step of the best checkpoint, and the metric and value that make it the best."""

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
    path = best_checkpoint_path(save_path, best)
    recover(path)
    return best if path.is_dir() else None


def keep_if_best(save_path: Path, candidate: BestCheckpoint) -> BestCheckpoint:
    """Keep the candidate's checkpoint if it is at least as good as the kept one; returns the best of the two.

    A crash leaves the checkpoint that was kept before, or the new one.
    """
    best = read_best_checkpoint(save_path)
    if best is not None and best.metric == candidate.metric and best.score > candidate.score:
        return best
    target, score_file = best_checkpoint_path(save_path, candidate), save_path / FOLDER / SCORE_FILE
    with staged(target) as unfinished:
        shutil.copytree(save_path / target.name, unfinished, copy_function=_link)
    write_text(score_file, json.dumps(asdict(candidate)))
    for former in target.parent.iterdir():
        if former not in (target, score_file):
            shutil.rmtree(former, ignore_errors=True)
    return candidate


def _link(source: str, target: str) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)  # a disk without hard links
