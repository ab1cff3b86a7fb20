"""A server in a process of its own, on this machine: started, waited for until it is healthy, stopped.

Covers any server that answers `GET /health` with 200 once it can work.
"""

import contextlib
import errno
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from flashrag.errors import ReSearchError, UserError
from flashrag.system.network import ask
from flashrag.system.processes import start_process, stop_process, tail

LOOPBACK = "127.0.0.1"
POLL_S = 0.5


class ServerFailed(ReSearchError):
    """A server did not come up; the message holds the end of its log."""


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    url: str,
    log_path: Path,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 300.0,
) -> Iterator[subprocess.Popen]:
    """Run `command` for the length of the block, which begins when `url` is healthy; its output goes to `log_path`.

    Raises `ServerFailed` when the process ends before it is healthy, or is not healthy in time.
    """
    process = start_process(command, log_path, environment)
    try:
        _wait_until_healthy(process, url, log_path, timeout_s)
        yield process
    finally:
        stop_process(process)


@contextlib.contextmanager
def retrieval_server(script: Path, config: Path, log_path: Path) -> Iterator[str]:
    """A retrieval server with this configuration, on a free port for the length of the block; yields its address.

    `script` is rag_serving/serving.py, which is no part of this package. Raises as `serving`.
    """
    port = free_port()
    command = [sys.executable, str(script), "--config", str(config), "--num_retriever", "1", "--port", str(port)]
    url = http_url(LOOPBACK, port)
    with serving(command, url, log_path):
        yield url


def listening_socket(host: str, port: int, backlog: int = 1) -> socket.socket:
    """A socket that listens at once: another server could bind the same port until one of them does.

    Raises `UserError` that names the flag, --host or --port, that has to change.
    """
    elsewhere = f"--host {host!r} is not an address of this machine ({{}}); try {LOOPBACK}, or 0.0.0.0 for all of them"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:
        raise UserError(elsewhere.format(error)) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was in use a moment ago is free
    try:
        listener.bind((host, port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(elsewhere.format(error.strerror)) from error
        remedy = "stop the program that uses it, or give another --port"
        if error.errno == errno.EACCES:
            remedy = "the system keeps low ports for root: give a --port from 1024 on"
        raise UserError(f"--port {port}: cannot listen on {host}:{port} ({error.strerror}); {remedy}") from error
    return listener


def check_port(host: str, port: int) -> None:
    """Raise `UserError` unless a server could listen there now; 0 stands for any free port."""
    listening_socket(host, port).close()


def http_url(host: str, port: int) -> str:
    """The address of a server.

    >>> http_url("127.0.0.1", 8000), http_url("::1", 8000)
    ('http://127.0.0.1:8000', 'http://[::1]:8000')
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def free_port() -> int:
    """A port of the loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def _wait_until_healthy(process: subprocess.Popen, url: str, log_path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(
                f"the server ended with exit code {process.returncode}; {log_path} ends:\n{tail(log_path)}"
            )
        with contextlib.suppress(httpx.TransportError):
            if ask(f"{url}/health", timeout_s=5.0).is_success:
                return
        time.sleep(POLL_S)
    raise ServerFailed(f"no healthy server at {url} after {timeout_s:.0f} s; {log_path} ends:\n{tail(log_path)}")
