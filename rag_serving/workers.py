"""The threads that search: N of them over one retriever, fed from the event loop.

What they call may search here, or in another process (retriever_process.py), for which they only wait.
Daemon threads, not an executor's: a search that hangs in native code must not keep the process from ending.
Does not cover: which queries make a batch (searcher.py).
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flashrag.retriever import Retriever
from rag_serving.query_queue import Job, Ranked

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """One searched batch: the answers in the order of its jobs, or the error that all of them share."""

    batch: Sequence[Job]
    answers: Sequence[Ranked]
    error: Exception | None
    seconds: float


class Workers:
    """`on_finished` is called on the event loop, once for every batch given to `search`."""

    def __init__(self, retriever: Retriever, count: int, on_finished: Callable[[Finished], None]) -> None:
        self._retriever = retriever
        self._on_finished = on_finished
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Sequence[Job] | None] = queue.SimpleQueue()
        self.count = count
        self.idle = count
        for number in range(count):
            threading.Thread(target=self._work, name=f"retriever-{number}", daemon=True).start()

    def search(self, batch: Sequence[Job]) -> None:
        assert self.idle > 0, "a batch is formed when a worker can take it"
        self.idle -= 1
        self._inbox.put(batch)

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        for _ in range(self.count):
            self._inbox.put(None)

    def _work(self) -> None:
        while (batch := self._inbox.get()) is not None:
            finished = self._searched(batch)
            try:
                self._loop.call_soon_threadsafe(self._hand_back, finished)
            except RuntimeError:  # the loop is closed: the server has ended, nobody waits
                return

    def _searched(self, batch: Sequence[Job]) -> Finished:
        started = time.perf_counter()
        answers: Sequence[Ranked] = ()
        error = None
        try:
            ranked = self._retriever.rank([job.query for job in batch], batch[0].num)
            answers = [tuple(hits) for _, hits in zip(batch, ranked, strict=True)]
        except Exception as caught:  # whatever it is, it is these requests' answer, and the thread lives on
            log.exception("a search of %d queries failed", len(batch))
            error = caught
        return Finished(batch, answers, error, time.perf_counter() - started)

    def _hand_back(self, finished: Finished) -> None:
        self.idle += 1
        self._on_finished(finished)
