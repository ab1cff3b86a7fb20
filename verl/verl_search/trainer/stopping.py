"""Stopping a run on purpose, in one way: a checkpoint is saved, and the run ends saying why and how to go on.

In the trainer's process: `raise StopTraining(reason)`, from whatever upstream's loop calls of ours. In an agent-loop
worker, which is an actor on any machine of the cluster: `await request_stop(reason)`; the reason travels through the
TransferQueue to the sampler, which raises it. trainer.py saves the checkpoint, main_ppo.py reports it.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from flashrag.errors import ReSearchError

EXIT_STOPPED = 3
STOP_PARTITION = "stop"  # of the TransferQueue, beside upstream's "train" and "val"
NOTICE = "[research] "  # marks a line of the log that is for the user: training/progress.py shows it
COMMAND_VARIABLE = "RESEARCH_COMMAND"


class StopTraining(ReSearchError):
    """The run must not go on; the message says why and what to do about it.

    `saves_checkpoint` is false where what has been learned since the last checkpoint is not worth keeping.
    """

    exit_code = EXIT_STOPPED
    saves_checkpoint = True


async def request_stop(reason: str) -> None:
    """Ask the trainer, from any of its worker processes, to save a checkpoint and stop; it does when it next polls."""
    import transfer_queue as tq

    await tq.async_kv_put(key=f"stop-{os.getpid()}", partition_id=STOP_PARTITION, tag={"reason": reason})


def check_stop_requests(partitions: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Raise `StopTraining` if the TransferQueue's tags, by partition and key, hold a worker's request to stop."""
    for tag in partitions.get(STOP_PARTITION, {}).values():
        if "reason" in tag:  # the queue makes a key first and then tags it: the next look sees the rest
            raise StopTraining(tag["reason"])


def resume_command() -> str:
    """What the user typed to start this run: run.sh notes it, else it is this process's own command line."""
    return os.environ.get(COMMAND_VARIABLE) or shlex.join(sys.orig_argv)
