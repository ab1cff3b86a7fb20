"""Stopping a run on purpose: the trainer saves a checkpoint, and the run ends with the reason and how to resume.

Code in the trainer's process raises `StopTraining(reason)`, from any hook that upstream's loop calls. An agent-loop
worker, an actor on any machine of the cluster, calls `await request_stop(reason)`: the reason travels through the
TransferQueue to the sampler, which raises it. trainer.py saves the checkpoint, main_ppo.py reports the reason.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from flashrag.errors import ReSearchError

EXIT_STOPPED = 3
STOP_PARTITION = "stop"  # of the TransferQueue, beside upstream's "train" and "val"
NOTICE = "[research] "  # marks the lines of the log that training/progress.py shows to the user
COMMAND_VARIABLE = "RESEARCH_COMMAND"


class StopTraining(ReSearchError):
    """The run must stop; the message gives the reason and the remedy.

    `saves_checkpoint` is false where the steps since the last checkpoint are lost or not worth keeping.
    """

    exit_code = EXIT_STOPPED
    saves_checkpoint = True


class TrainingFailed(ReSearchError):
    """Training ended with an error that the input did not cause: an exception, or the death of a process."""


def print_notice(message: str) -> None:
    """Print a line to the log that training/progress.py shows to the user."""
    print(f"{NOTICE}{message}", flush=True)


async def request_stop(reason: str) -> None:
    """Ask the trainer, from any of its worker processes, to save a checkpoint and stop at its next poll."""
    import transfer_queue as tq

    await tq.async_kv_put(key=f"stop-{os.getpid()}", partition_id=STOP_PARTITION, tag={"reason": reason})


def check_stop_requests(partitions: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Raise `StopTraining` if the TransferQueue's tags, by partition and key, hold a worker's request to stop."""
    for tag in partitions.get(STOP_PARTITION, {}).values():
        if "reason" in tag:  # the queue creates a key before it tags it; the next poll sees the tag
            raise StopTraining(tag["reason"])


def resume_command() -> str:
    """The command that started this run: the one from run.sh, else this process's own."""
    return os.environ.get(COMMAND_VARIABLE) or shlex.join(sys.orig_argv)
