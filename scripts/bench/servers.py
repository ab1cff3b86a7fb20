"""The server under test, and the same retriever in another process: called directly, which is the limit, or as a rival.

The rival is an async handler that searches on the event loop, one query at a time, as the first public code does. It
encodes with `SentenceTransformer.encode`, as that code's library does, or with our encoder, so that the handler alone
differs from our server.
"""

import contextlib
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.managers import BaseManager
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import psutil
import uvicorn
from fastapi import FastAPI

from flashrag.retriever import check_assets, load_retriever_from, prepare_process
from flashrag.system.local_server import LOOPBACK, free_port, serving
from rag_serving.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]
TOP_N = 5  # passages that each query asks for
MIB = 1 << 20
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen

    def memory_mib(self) -> float:
        """Proportional set size of the process and its children: pages that they share count once."""
        return sum(process.memory_full_info().pss for process in self._processes()) / MIB

    def cpu_s(self) -> float:
        """Processor time of the process and its children so far."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._processes()))

    def _processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


@contextlib.contextmanager
def our_server(config: Path, folder: Path, num_retriever: int = 1, port: int | None = None) -> Iterator[Server]:
    """`rag_serving/serving.py`, healthy; its output goes into `folder`."""
    port = port or free_port()
    url, program = f"http://{LOOPBACK}:{port}", str(ROOT / "rag_serving" / "serving.py")
    flags = ["--config", str(config), "--num_retriever", str(num_retriever), "--port", str(port)]
    with serving([sys.executable, program, *flags], url, folder / "server.log") as process:
        yield Server(url, process)


@contextlib.contextmanager
def in_own_process(make: Callable[..., Kind], *arguments: object, **named: object) -> Iterator[Kind]:
    """The object that `make` returns, in a new process: its methods are called from here, values are copied.

    It shares its interpreter with nothing else that is measured.
    """
    BaseManager.register("make", make)
    with BaseManager(ctx=multiprocessing.get_context("spawn")) as process:
        yield process.make(*arguments, **named)  # pyrefly: ignore


class Direct:
    """The retriever of a server's config, with our encoder or with sentence-transformers' own `encode`.

    Its own calls are timed; thread settings are those that a server in this process would find.
    """

    def __init__(self, config: Path, *, our_encoder: bool) -> None:
        prepare_process()
        assets = check_assets(read_settings(config))
        self._retriever = load_retriever_from(assets)
        if not our_encoder:
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(assets.model_folder))
            self._retriever.encode_queries = partial(model.encode, normalize_embeddings=True)  # pyrefly: ignore

    def call_ms(self, batch_size: int, questions: Sequence[str]) -> np.ndarray:
        """The time of each call when `questions` are ranked `batch_size` at a time."""
        times = []
        for start in range(0, len(questions), batch_size):
            started = time.perf_counter()
            self._retriever.rank(questions[start : start + batch_size], TOP_N)
            times.append(1000 * (time.perf_counter() - started))
        return np.array(times)

    def cpu_s(self) -> float:
        """Processor time of this process so far."""
        return time.process_time()

    def serve(self) -> str:
        """Begin to serve as the rival; returns its address. It answers as our server does when asked for scores."""
        app, port = FastAPI(), free_port()

        @app.post("/search")
        async def search(request: dict[str, Any]) -> list:
            documents, scores = self._retriever.search(request["query"], request["top_n"], return_score=True)
            return [[{"id": document.id, "contents": document.contents} for document in documents], scores]

        server = uvicorn.Server(uvicorn.Config(app, LOOPBACK, port, log_level="warning"))
        Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.1)
        return f"http://{LOOPBACK}:{port}"
