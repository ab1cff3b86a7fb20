"""The trainer as a guarded child process: its environment, its log file, its progress on our console."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from flashrag.errors import EXIT_USER_ERROR, UserError
from flashrag.system.machine import kept_memory, waiting_threads
from flashrag.system.processes import read_log, start_process
from training.failure import describe_failure, memory_ran_out
from training.progress import NoticePrinter, ProgressPrinter, SilencePrinter
from verl_search.main_ppo import EXAMINED_VARIABLE
from verl_search.trainer.run_folder import METRICS_FOLDER, forget_end, read_end
from verl_search.trainer.stopping import (
    COMMAND_VARIABLE,
    EXIT_STOPPED,
    StopTraining,
    TrainingFailed,
    resume_command,
)

POLL_S = 1.0
CPU_CONFIGS = ("cpu", "demo", "warm_start_cpu")


class Printer(Protocol):
    """Prints what has happened since it last looked."""

    def print_news(self) -> None: ...


def trainer_environment(config_name: str, save_path: Path, threads: int = 1) -> dict[str, str]:
    """The platform of a CPU config, the paths of verl's loggers, and the threads that one process computes with."""
    metrics_dir = save_path / METRICS_FOLDER
    try:
        metrics_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"save_path={save_path} cannot be written ({error}); give another one") from error
    # verl's file logger truncates the file that it opens, so every start writes to a file of its own.
    environment = {
        "VERL_FILE_LOGGER_PATH": str(metrics_dir / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"),
        "TENSORBOARD_DIR": str(save_path / "tensorboard"),
        "WANDB_DIR": os.environ.get("WANDB_DIR") or str(save_path),
        COMMAND_VARIABLE: resume_command(),
        **waiting_threads(),  # engine and trainer take turns on the same cores
    }
    if not os.environ.get("OMP_NUM_THREADS"):
        environment["OMP_NUM_THREADS"] = str(threads)
    if config_name in CPU_CONFIGS:
        # verl would take a GPU of the machine even if torch was built for the CPU.
        environment |= {"VERL_PLATFORM": "cpu", **kept_memory()}
    return environment


def run_trainer(
    config_name: str,
    overrides: Sequence[str],
    save_path: Path,
    total_steps: int | None = None,
    *,
    threads: int = 1,
    examined: bool = False,
) -> None:
    """Train to the end, printing one line a step and the trainer's notices.

    `threads`: of the trainer, and of each engine. `examined`: the caller has run the preflight, so the trainer
    does not repeat it.
    Raises `UserError`, `StopTraining` (it ended on purpose) or `TrainingFailed` otherwise.
    """
    environment = trainer_environment(config_name, save_path, threads)
    if examined:
        environment[EXAMINED_VARIABLE] = "1"
    log_path = save_path / "train.log"
    command = [sys.executable, "-m", "verl_search.main_ppo", "--config-name", config_name, *overrides]
    print(f"trainer starts (Ray, FSDP2, vLLM); its full log: {log_path}", flush=True)
    follow_process(
        command, save_path, log_path, environment, [ProgressPrinter(save_path / METRICS_FOLDER, total_steps)]
    )


def follow_process(
    command: Sequence[str],
    save_path: Path,
    log_path: Path,
    environment: Mapping[str, str],
    printers: Sequence[Printer],
) -> None:
    """Run a trainer's process to its end, printing its news and its notices. Raises as `run_trainer`."""
    forget_end(save_path)
    notices = NoticePrinter(log_path)
    log_start = notices.read_bytes
    process = start_process(command, log_path, environment)
    _follow(process, *printers, notices, SilencePrinter(log_path))
    if process.returncode != 0:
        raise_end(save_path, log_path, log_start, process.returncode)


def _follow(process: subprocess.Popen, *printers: Printer) -> None:
    running = True
    while running:
        running = process.poll() is None
        for printer in printers:
            printer.print_news()
        time.sleep(POLL_S if running else 0.0)


def raise_end(save_path: Path, log_path: Path, log_start: int, returncode: int) -> NoReturn:
    """Raise an error with the reason why a trainer ended: its own note, or else the end of its part of the log."""
    end = read_end(save_path)
    if end is not None and end.exit_code == EXIT_USER_ERROR:
        raise UserError(end.reason)
    if end is not None and end.exit_code == EXIT_STOPPED:
        memory = memory_ran_out(read_log(log_path, log_start))
        told = (end.reason, *filter(None, [memory]), f"The trainer's log is {log_path}.")
        raise StopTraining("\n".join(told))
    reason = "" if end is None else end.reason
    raise TrainingFailed(describe_failure(save_path, log_path, log_start, returncode, reason))
