"""The two servers of the demo: the retrieval server, and a completion server for evaluation. Loopback, free ports."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import yaml

from flashrag.errors import ReSearchError
from flashrag.processes import start_process, stop_process, tail

HOST = "127.0.0.1"
# Importing torch and vLLM takes a minute on two cores that other work keeps busy.
START_TIMEOUT_S = 300.0
MAX_MODEL_TOKENS = 640
REPOSITORY = Path(__file__).resolve().parents[2]


class ServerFailed(ReSearchError):
    """A server of the demo did not come up; the message holds the end of its log."""


@contextlib.contextmanager
def retrieval_server(config: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Serve a retrieval config for the length of the block; yields the server's URL."""
    config_path = folder / "serving_config.yaml"
    config_path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    port = free_port()
    script = str(REPOSITORY / "rag_serving" / "serving.py")
    command = [sys.executable, script, "--config", str(config_path), "--num_retriever", "1", "--port", str(port)]
    with _serving(command, port, folder / "retrieval_server.log") as url:
        yield url


@contextlib.contextmanager
def completion_server(model_path: Path, folder: Path) -> Iterator[str]:
    """Serve a model by vLLM's OpenAI-compatible server in float32 for the length of the block; yields its URL."""
    port = free_port()
    # `vllm serve` looks for a distribution named vllm, which the CPU build is not; the module it runs does not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path)]
    command += ["--host", HOST, "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(MAX_MODEL_TOKENS), "--max-num-seqs", "64"]
    environment = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with _serving(command, port, folder / "completion_server.log", environment) as url:
        yield url


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _serving(
    command: Sequence[str], port: int, log_path: Path, environment: dict[str, str] | None = None
) -> Iterator[str]:
    process = start_process(command, log_path, environment)
    try:
        url = f"http://{HOST}:{port}"
        _wait_until_healthy(process, url, log_path)
        yield url
    finally:
        stop_process(process)


def _wait_until_healthy(process: subprocess.Popen, url: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(
                f"a server ended with exit code {process.returncode}; {log_path} ends:\n{tail(log_path)}"
            )
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5.0).is_success:
                return
        time.sleep(0.5)
    raise ServerFailed(f"no server at {url} after {START_TIMEOUT_S:.0f} s; {log_path} ends:\n{tail(log_path)}")
