"""A retriever in a process of its own, so that searches and the server's event loop do not share an interpreter.

torch takes and gives back the interpreter's lock with every operation: searches in threads of the server slowed its
answers down, and were slowed down by them, by a third each on two cores. Only queries and hits cross the pipe.
A process that dies is started again and asked again: a search changes nothing, so nothing is lost by it.
Does not cover: which queries make a batch (searcher.py), the threads that ask (workers.py).
"""

import atexit
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from flashrag.document import Hit
from flashrag.errors import ReSearchError
from flashrag.retriever import Retriever
from flashrag.retriever.base import PassageCount

log = logging.getLogger(__name__)

ATTEMPTS = 3  # a batch that kills the process every time must not do so for ever


class ProcessDied(ReSearchError):
    """The process ended while it loaded, again and again over the same queries, or because it was closed."""


class _Facts(NamedTuple):
    """What the server says of its retriever."""

    method: str
    documents: int
    topk: int


@dataclass(frozen=True)
class _Worker:
    """One life of the process: its pipes, one for each thread that asks, and those that are free."""

    process: Any
    pipes: Sequence[Connection]
    idle: "queue.SimpleQueue[Connection]"

    def close(self) -> None:
        """End the process, whatever it searches or hangs in; who waits for it reads the end of a pipe."""
        self.process.kill()
        self.process.join()
        for pipe in self.pipes:
            pipe.close()


class RetrieverProcess(Retriever):
    """`load` gives the retriever, there; `num_threads` threads may call `rank` at once, and are answered by as many."""

    def __init__(self, load: Callable[[], Retriever], num_threads: int) -> None:
        self._load = load
        self._num_threads = num_threads
        self._replacing = threading.Lock()
        self._closed = False
        self._worker, facts = self._start()
        atexit.register(self.close)  # before multiprocessing's own end, which would wait for the process
        self.method, self.topk = facts.method, facts.topk
        self.corpus = PassageCount(facts.documents)

    @property
    def pid(self) -> int:
        return self._worker.process.pid

    def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        for _ in range(ATTEMPTS):
            if self._closed:
                raise ProcessDied("the search process was closed")
            worker = self._worker
            try:
                return _ask(worker, list(queries), num)
            except (EOFError, OSError):
                self._replace(worker)
        raise ProcessDied(f"the search process died {ATTEMPTS} times over the same {len(queries)} queries")

    def close(self) -> None:
        """End the process; searches under way raise `ProcessDied`."""
        self._closed = True
        self._worker.close()
        atexit.unregister(self.close)

    def _replace(self, dead: _Worker) -> None:
        """Start the process again, once for all threads that found it dead."""
        with self._replacing:
            if self._worker is dead and not self._closed:
                dead.close()
                log.warning("the search process ended with exit code %s; starting it again", dead.process.exitcode)
                self._worker, _ = self._start()
                if self._closed:  # meanwhile
                    self._worker.close()

    def _start(self) -> tuple[_Worker, _Facts]:
        # Spawned: a fork of a process with threads, and torch in it, may hang.
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(self._num_threads)]
        theirs = [pair[1] for pair in pairs]
        process = context.Process(target=_serve, args=(self._load, theirs), name="retriever", daemon=True)
        process.start()
        for pipe in theirs:  # only the process holds its ends: when it dies, ours say so
            pipe.close()
        worker = _Worker(process, [pair[0] for pair in pairs], queue.SimpleQueue())
        try:
            reply = worker.pipes[0].recv()
        except EOFError as error:
            worker.close()
            raise ProcessDied(f"the search process ended with exit code {process.exitcode} while it loaded") from error
        if isinstance(reply, BaseException):
            worker.close()
            raise reply
        for pipe in worker.pipes:
            worker.idle.put(pipe)
        return worker, reply


def _ask(worker: _Worker, queries: list[str], num: int) -> list[list[Hit]]:
    pipe = worker.idle.get()
    pipe.send((queries, num))
    reply = pipe.recv()
    worker.idle.put(pipe)
    if isinstance(reply, Exception):
        raise reply
    return reply


def _serve(load: Callable[[], Retriever], pipes: Sequence[Connection]) -> None:
    """The process: load, say so, then one thread for each pipe until one of them is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which drains first
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    try:
        retriever = load()
    except BaseException as error:
        pipes[0].send(error)
        return
    pipes[0].send(_Facts(retriever.method, len(retriever.corpus), retriever.topk))
    for pipe in pipes[1:]:
        threading.Thread(target=_answer, args=(retriever, pipe), daemon=True).start()
    _answer(retriever, pipes[0])


def _end_with_the_server() -> None:
    """However the server ends, nothing of it is left, a long load included."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a child"
    parent.join()
    os._exit(0)


def _answer(retriever: Retriever, pipe: Connection) -> None:
    while True:
        try:
            queries, num = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # the server is gone, or wants no more; searches that still run are of no use
        try:
            reply: object = retriever.rank(queries, num)
        except Exception as error:
            log.exception("a search of %d queries failed", len(queries))
            reply = error
        try:
            pipe.send(reply)
        except (EOFError, OSError):
            os._exit(0)
