"""Upstream's `Tracking`, except that no optional logger ends a run: one that fails is left out, with a line.

wandb gets a second chance offline. Only the console and the file, which training/progress.py reads, are indispensable.
"""

import os
from typing import Any

from verl.utils.tracking import Tracking

from verl_search.trainer.stopping import print_notice
from verl_search.trainer.wandb_mode import MODE_VARIABLE, OFFLINE, WITHOUT_SERVER

INDISPENSABLE = ("console", "file")


class OptionalTracking(Tracking):
    def __init__(self, project_name: str, experiment_name: str, default_backend: Any = "console", config: Any = None):
        names = [default_backend] if isinstance(default_backend, str) else list(default_backend)
        super().__init__(project_name, experiment_name, [name for name in names if name in INDISPENSABLE], config)
        for name in names:
            started = name in INDISPENSABLE or self._start(name, project_name, experiment_name, config)
            if not started and not isinstance(default_backend, str):
                default_backend.remove(name)  # upstream hands the same list to the loggers of samples

    def _start(self, name: str, *run: Any) -> bool:
        try:
            one = Tracking(*run[:2], [name], run[2])
        except Exception as error:
            if name == "wandb" and os.environ.get(MODE_VARIABLE) not in WITHOUT_SERVER:
                import wandb

                print_notice(f"wandb works offline: {_line(error)}")
                wandb.teardown()  # it reads the variables once
                os.environ[MODE_VARIABLE] = OFFLINE
                return self._start(name, *run)
            print_notice(f"the logger {name} is left out: {_line(error)}")
            return False
        self.logger |= one.logger
        one._finished = True  # it is ended with the others
        return True

    def log(self, data: Any, step: int, backend: Any = None) -> None:
        for name, logger in list(self.logger.items()):
            if backend is not None and name not in backend:
                continue
            try:
                logger.log(data=data, step=step)
            except Exception as error:
                if name in INDISPENSABLE:
                    raise
                del self.logger[name]
                print_notice(f"the logger {name} is left out from step {step} on: {_line(error)}")

    def finish(self, exit_code: int = 0) -> None:
        try:
            super().finish(exit_code)
        except Exception as error:  # the run is over
            print_notice(f"a logger did not end well: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
