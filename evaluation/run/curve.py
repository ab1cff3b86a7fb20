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

    Steps after the last one that the trainer noted are left out, with a line: it is still writing them, or it has gone
    back to an earlier one since. Without such a note, as of checkpoints that were copied, none is.
    """
    found = {int(each.name.rpartition("_")[2]): each for each in run.glob("global_step_*") if _is_step(each)}
    last = last_step(run)
    left_out = [step for step in sorted(found) if last is not None and step > last]
    for step in left_out:
        print(f"left out: {found.pop(step)}, because step {last} is the last one of which {run} notes a checkpoint")
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
