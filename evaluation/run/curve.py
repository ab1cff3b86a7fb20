"""`run_eval.py curve … --auto_serve RUN`: the same evaluation of every checkpoint in the folder of a training run.

Each is a run of its own, whose save_note ends in `step_N`: it is continued like any other, and the report joins the
runs into a curve over the steps.
"""

import re
from pathlib import Path

from evaluation.command_line import CommandLine
from evaluation.run.auto_serve import check_auto_serve
from flashrag.errors import UserError
from verl_search.trainer.export import find_checkpoint
from verl_search.trainer.run_folder import last_step


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a training run by their steps; raises `UserError` if there are none, or one is damaged.

    What the trainer is still writing, or was when it ended, is left out: it notes a checkpoint once that is whole.
    """
    found = {int(each.name.rpartition("_")[2]): each for each in run.glob("global_step_*") if _is_step(each)}
    last = last_step(run)
    found = {step: each for step, each in found.items() if last is None or step <= last}
    if not found:
        raise UserError(f"--auto_serve {run} holds no finished global_step_N; expected the folder of a training run")
    for path in found.values():
        find_checkpoint(path)
    return dict(sorted(found.items()))


def _is_step(path: Path) -> bool:
    return re.fullmatch(r"global_step_\d+", path.name) is not None and (path / "actor").is_dir()


def command_lines(command_line: CommandLine) -> list[CommandLine]:
    """The command of each checkpoint. Raises `UserError`."""
    run = command_line.auto_serve
    if run is None:
        raise UserError("curve evaluates the checkpoints of a training run; give its folder with --auto_serve")
    steps = checkpoints(run)
    lines = []
    for step, path in steps.items():
        line = command_line._replace(auto_serve=path)
        note = "_".join(filter(None, (check_auto_serve(line).save_note, f"step_{step}")))
        lines.append(line._replace(overrides={**line.overrides, "save_note": note}))
    return lines
