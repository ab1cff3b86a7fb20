"""The workers that search batches: a separate process (for the server's command) or threads of this process.

torch takes and releases the interpreter's lock with every operation. In threads of the server, searches and the writing
of answers slow each other down by a third on two cores. So searches run in a separate process. The event loop writes
queries to it and reads hits from it, over one socket for each search that may run at once. A process that dies is
started again and its searches are repeated, which is safe because a search changes nothing.
Threads serve a retriever that must live in this process, as on a Ray cluster.
Does not cover: the choice of a batch's queries (searcher.py).
"""

import asyncio
import atexit
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedRWPair
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, TypeVar

from flashrag.document import Hit
from flashrag.errors import ReSearchError
from flashrag.retriever import Retriever

log = logging.getLogger(__name__)

ATTEMPTS = 3  # at a batch that kills the process every time
LENGTH_BYTES = 8  # before each reply
LARGE_REPLY_BYTES = 1 << 20  # about 5 ms to unpickle: more would keep the event loop from answering others
T = TypeVar("T")


class ProcessDied(ReSearchError):
    """The process ended while it loaded, died repeatedly over the same queries, or was closed."""


class Facts(NamedTuple):
    """The retriever, as the server describes it."""

    method: str
    documents: int
    topk: int

    @classmethod
    def of(cls, retriever: Retriever) -> "Facts":
        return cls(retriever.method, len(retriever.corpus), retriever.topk)


class ThreadWorkers:
    """`load` gives a retriever that is safe to call from `count` threads at once."""

    def __init__(self, load: Callable[[], Retriever], count: int) -> None:
        self.count = count
        self._load = load
        self._retriever: Retriever | None = None
        self._threads = ThreadPoolExecutor(count, "retriever")

    async def start(self) -> Facts:
        """Load the retriever. Raises the loader's error."""
        self._retriever = await self._in_thread(self._load)
        return Facts.of(self._retriever)

    async def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        """The retriever's `rank`. Raises its errors."""
        assert self._retriever is not None, "a server that loads searches nothing"
        return await self._in_thread(self._retriever.rank, queries, num)

    async def close(self) -> None:
        """Release the retriever; the results of searches that still run are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._retriever is not None:
            self._retriever.close()

    def _in_thread(self, call: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call, *args)


class ProcessWorkers:
    """`load` is called in a new process, where `count` threads search; that process must find it by its name."""

    def __init__(self, load: Callable[[], Retriever], count: int) -> None:
        self.count = count
        self._load = load
        self._process: SpawnProcess | None = None
        self._channels: list[_Channel] = []
        self._idle: asyncio.Queue[_Channel] = asyncio.Queue()  # channels without a request
        self._replacing = asyncio.Lock()
        self._closed = False

    async def start(self) -> Facts:
        """Load the retriever. Raises the loader's error, and `ProcessDied`."""
        pairs = [socket.socketpair() for _ in range(self.count)]
        theirs = [pair[1] for pair in pairs]
        # Spawned: a fork of a process with threads, and torch in it, may hang.
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(self._load, theirs), name="retriever", daemon=True)
        self._process.start()
        atexit.register(self._process.kill)  # before multiprocessing's own handler, which would wait for it
        for end in theirs:  # only the process holds these ends, so that its death closes ours
            end.close()
        streams = [await asyncio.open_unix_connection(sock=ours, limit=LARGE_REPLY_BYTES) for ours, _ in pairs]
        self._channels, self._idle = [_Channel(*stream) for stream in streams], asyncio.Queue()
        try:
            facts = await self._channels[0].read()
        except (EOFError, OSError):
            await self._end()
            facts = ProcessDied(f"the search process ended with exit code {self._process.exitcode} while it loaded")
        for channel in self._channels:
            self._idle.put_nowait(channel)
        if isinstance(facts, Exception):
            await self._end()
            raise facts
        return facts

    async def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        """The retriever's `rank`. Raises its errors, and `ProcessDied`."""
        request = pickle.dumps((list(queries), num))
        for _ in range(ATTEMPTS):
            process, idle = self._process, self._idle
            if self._closed or process is None:
                raise ProcessDied("the search process was closed")
            channel = await idle.get()
            try:
                reply = await channel.ask(request)
            except (EOFError, OSError):
                await self._replace(process)
                continue
            except asyncio.CancelledError:
                channel.writer.transport.abort()  # else the next request would read the reply to this one
                raise
            finally:
                idle.put_nowait(channel)
            if isinstance(reply, Exception):
                raise reply
            return reply
        raise ProcessDied(f"the search process died {ATTEMPTS} times over the same {len(queries)} queries")

    async def close(self) -> None:
        """End the process; searches under way raise `ProcessDied`."""
        self._closed = True
        await self._end()

    async def _replace(self, dead: SpawnProcess) -> None:
        """Start the process again, once for all searches that found it dead."""
        async with self._replacing:
            if self._process is dead and not self._closed:
                await self._end()
                log.warning("the search process ended with exit code %s; starting it again", dead.exitcode)
                await self.start()

    async def _end(self) -> None:
        """End the process, even if it hangs; pending reads of replies then end with an error."""
        if self._process is None:
            return
        self._process.kill()
        await asyncio.to_thread(self._process.join)  # freeing an index of many gigabytes takes time
        atexit.unregister(self._process.kill)
        for channel in self._channels:
            channel.writer.transport.abort()


Workers = ThreadWorkers | ProcessWorkers  # search up to `count` batches at once


class _Channel(NamedTuple):
    """One of the process's sockets, with a thread of its own at the other end."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> Any:
        self.writer.write(request)
        await self.writer.drain()
        return await self.read()

    async def read(self) -> Any:
        """The next reply. Raises `EOFError` or `OSError` where the process is gone."""
        length = int.from_bytes(await self.reader.readexactly(LENGTH_BYTES))
        reply = await self.reader.readexactly(length)
        return pickle.loads(reply) if length < LARGE_REPLY_BYTES else await asyncio.to_thread(pickle.loads, reply)


def _serve(load: Callable[[], Retriever], ends: Sequence[socket.socket]) -> None:
    """The process: load, report it, then serve each socket in a thread until the server closes one."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which drains first
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    files = [end.makefile("rwb") for end in ends]
    try:
        retriever = load()
    except Exception as error:
        _reply(files[0], _portable(error))
        return
    _reply(files[0], Facts.of(retriever))
    for file in files[1:]:
        threading.Thread(target=_answer, args=(retriever, file), daemon=True).start()
    _answer(retriever, files[0])


def _end_with_the_server() -> None:
    """End this process with the server, however the server ends, even while this process loads."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a child"
    parent.join()
    os._exit(0)


def _answer(retriever: Retriever, file: BufferedRWPair) -> None:
    with_the_server = True
    while with_the_server:
        try:
            queries, num = pickle.load(file)
            try:
                reply: object = retriever.rank(queries, num)
            except Exception as error:
                reply = _portable(error)
                reply.add_note(f"in the search process:\n{traceback.format_exc()}")  # the log is the server's
            _reply(file, reply)
        except (EOFError, OSError):
            with_the_server = False
    os._exit(0)  # the server is gone or has closed a socket; nobody needs the searches that still run


def _portable(error: Exception) -> Exception:
    """The error as the server will see it; one that cannot be pickled becomes its text."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _reply(file: BufferedRWPair, value: object) -> None:
    reply = pickle.dumps(value)
    file.write(len(reply).to_bytes(LENGTH_BYTES) + reply)
    file.flush()
