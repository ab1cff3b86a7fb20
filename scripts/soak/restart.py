"""Clients that retry keep asking while their server is ended, politely and not, and started again on the same port."""

import asyncio
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from tqdm import tqdm

from flashrag.client import RetrievalClient
from flashrag.errors import SearchError
from flashrag.system.local_server import LOOPBACK, free_port
from scripts.bench.answers import Ranking, Truth
from scripts.bench.server_process import Server, our_server

CLIENTS = 16
TOP_N = 5
UPTIME_S = 4.0
MAX_ATTEMPTS = 100  # a start takes seconds, more on a busy machine


@dataclass
class Survival:
    """What the clients got."""

    answered: int = 0
    slowest_s: float = 0.0
    violations: list[str] = field(default_factory=list)


def survive(config: Path, folder: Path, truth: Truth, restarts: int, seed: int) -> Survival:
    """Ask through `restarts` restarts; SIGTERM and SIGKILL take turns."""
    survival, over, port = Survival(), Event(), free_port()
    with ThreadPoolExecutor(1) as thread:
        url = f"http://{LOOPBACK}:{port}"
        clients = thread.submit(lambda: asyncio.run(_ask_all(url, truth, over, survival, seed)))
        try:
            for number in tqdm(range(restarts + 1), desc="restarts", unit=" servers"):
                with our_server(config, 1, folder, port) as server:
                    _answer_for_a_while(survival)
                    if number < restarts:
                        _end(server, signal.SIGKILL if number % 2 else signal.SIGTERM, survival)
                    else:  # the last one serves what is still asked
                        over.set()
                        clients.result()
        finally:
            over.set()
    return survival


def _answer_for_a_while(survival: Survival) -> None:
    """Wait until this server has been asked: a client may still be in its pause between two attempts."""
    before, started = survival.answered, time.monotonic()
    while time.monotonic() - started < UPTIME_S or survival.answered < before + CLIENTS:
        time.sleep(0.1)


def _end(server: Server, signal_number: signal.Signals, survival: Survival) -> None:
    server.process.send_signal(signal_number)
    exit_code = server.process.wait(60)
    if signal_number is signal.SIGTERM and exit_code != 0:
        survival.violations.append(f"exit code {exit_code} after SIGTERM")


async def _ask_all(url: str, truth: Truth, over: Event, survival: Survival, seed: int) -> None:
    async with RetrievalClient(url, top_n=TOP_N, max_attempts=MAX_ATTEMPTS) as client:
        await asyncio.gather(
            *(_ask(client, truth, over, survival, random.Random(seed + number)) for number in range(CLIENTS))
        )


async def _ask(client: RetrievalClient, truth: Truth, over: Event, survival: Survival, rng: random.Random) -> None:
    while not over.is_set():
        query, started = rng.choice(truth.queries), time.monotonic()
        try:
            documents = await client.search(query)
        except SearchError as error:
            survival.violations.append(f"lost: {error}")
            continue
        ranking = Ranking([document.contents for document in documents], [document.id for document in documents])
        if problem := truth.problem(query, TOP_N, ranking):
            survival.violations.append(f"wrong: {query!r}: {problem}")
        survival.answered += 1
        survival.slowest_s = max(survival.slowest_s, time.monotonic() - started)
