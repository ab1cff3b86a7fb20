"""The servers under test, each in processes of its own, and the same retriever without a server: the limit.

The rival is an async handler that searches on the event loop, one query at a time, as the first public code does. It
encodes with `SentenceTransformer.encode`, as that code's library does, or with our encoder, so that the handler alone
differs from our server.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from fastapi import FastAPI

from flashrag.retriever import Retriever, check_assets, load_retriever_from, prepare_process
from flashrag.system.local_server import LOOPBACK, free_port, serving
from rag_serving.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]
TOP_N = 5  # passages that each query asks for
BLOCKING_CONFIG, BLOCKING_ENCODER = "RESEARCH_BENCH_CONFIG", "RESEARCH_BENCH_OUR_ENCODER"
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


def our_server(
    config: Path, num_retriever: int, folder: Path, port: int | None = None
) -> AbstractContextManager[Server]:
    """`rag_serving/serving.py`, healthy; its output goes into `folder`."""
    command = [str(ROOT / "rag_serving" / "serving.py"), "--config", str(config), "--num_retriever", str(num_retriever)]
    return _running(command, port or free_port(), folder / "server.log")


def blocking_server(config: Path, folder: Path, *, our_encoder: bool) -> AbstractContextManager[Server]:
    """uvicorn over `blocking_app`, healthy."""
    command = ["-m", "uvicorn", "--factory", f"{__name__}:{blocking_app.__name__}", "--log-level", "warning"]
    given = {BLOCKING_CONFIG: str(config), BLOCKING_ENCODER: "yes" if our_encoder else ""}
    return _running(command, free_port(), folder / f"blocking_{our_encoder=}.log", **given)


@contextlib.contextmanager
def _running(arguments: Sequence[str], port: int, log_path: Path, **environment: str) -> Iterator[Server]:
    url, command = f"http://{LOOPBACK}:{port}", [sys.executable, *arguments, "--port", str(port)]
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # children import from where this process does
    with serving(command, url, log_path, environment=environment) as process:
        yield Server(url, process)


class _Process(BaseManager):
    pass


@contextlib.contextmanager
def in_own_process(make: Callable[..., Kind], *arguments: object, **named: object) -> Iterator[Kind]:
    """The object that `make` returns, in a new process: its methods are called from here, values are copied.

    It shares its interpreter with nothing else that is measured.
    """
    _Process.register("make", make)
    with _Process(ctx=multiprocessing.get_context("spawn")) as process:
        yield process.make(*arguments, **named)  # pyrefly: ignore


class Direct:
    """Times the retriever's own calls; thread settings are those that a server in this process would find."""

    def __init__(self, config: Path, *, our_encoder: bool) -> None:
        self._retriever = measured_retriever(config, our_encoder=our_encoder)

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


def measured_retriever(config: Path, *, our_encoder: bool) -> Retriever:
    """The retriever of a server's config, with our encoder or with sentence-transformers' own `encode`."""
    prepare_process()
    assets = check_assets(read_settings(config))
    retriever = load_retriever_from(assets)
    if not our_encoder:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(assets.model_folder))
        retriever.encode_queries = lambda queries: model.encode(queries, normalize_embeddings=True)  # pyrefly: ignore
    return retriever


def blocking_app() -> FastAPI:
    """Answers as our server does when it is asked for scores, which the benchmark always does."""
    config, our_encoder = Path(os.environ[BLOCKING_CONFIG]), bool(os.environ[BLOCKING_ENCODER])
    retriever, app = measured_retriever(config, our_encoder=our_encoder), FastAPI()
    retriever.search("warm-up")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/search")
    async def search(request: dict[str, Any]) -> list:
        documents, scores = retriever.search(request["query"], request["top_n"], return_score=True)
        return [[{"id": document.id, "contents": document.contents} for document in documents], scores]

    return app
