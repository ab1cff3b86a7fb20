"""Servers under measurement, as processes: started, watched from outside (memory, /metrics), stopped."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from flashrag.system.local_server import LOOPBACK, free_port, serving

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


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

    def metric(self, name: str) -> float | None:
        """The sum of a figure of /metrics over its labels; None where the server has no such figure."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).raise_for_status().text
        families = text_string_to_metric_families(text)
        values = [sample.value for family in families for sample in family.samples if sample.name == name]
        return sum(values) if values else None


@contextlib.contextmanager
def our_server(config: Path, num_retriever: int, folder: Path, port: int | None = None) -> Iterator[Server]:
    """`rag_serving/serving.py`, healthy; its output goes into `folder`."""
    script = str(ROOT / "rag_serving" / "serving.py")
    command = [sys.executable, script, "--config", str(config), "--num_retriever", str(num_retriever)]
    with _running(command, port or free_port(), folder / "server.log") as server:
        yield server


@contextlib.contextmanager
def blocking_server(config: Path, folder: Path, *flags: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "scripts.bench.blocking", "--config", str(config), *flags]
    with _running(command, free_port(), folder / f"blocking{''.join(flags)}.log") as server:
        yield server


@contextlib.contextmanager
def _running(command: Sequence[str], port: int, log_path: Path) -> Iterator[Server]:
    url = f"http://{LOOPBACK}:{port}"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}  # children import from where this process does
    with serving([*command, "--port", str(port)], url, log_path, environment=environment) as process:
        yield Server(url, process)


def write_config(folder: Path, values: Mapping[str, object]) -> Path:
    path = folder / "serving.yaml"
    path.write_text(json.dumps(values, default=str))  # JSON is YAML
    return path
