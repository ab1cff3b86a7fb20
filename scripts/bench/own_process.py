"""An object in a process of its own: what is measured there does not share an interpreter with anything else."""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.managers import BaseManager
from typing import TypeVar

Kind = TypeVar("Kind")


class _Process(BaseManager):
    pass


@contextlib.contextmanager
def in_own_process(make: Callable[..., Kind], *arguments: object, **named: object) -> Iterator[Kind]:
    """What `make` makes in a new process; its methods are called from here, arguments and results are copied."""
    _Process.register("make", make)
    with _Process(ctx=multiprocessing.get_context("spawn")) as process:
        yield process.make(*arguments, **named)  # pyrefly: ignore
