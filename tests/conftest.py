"""Settings of every test process, made before any library reads them: one thread each, no network.

And what several packages' tests share: a browser, and real HTTP servers around small applications.
"""

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

# Two cores and several processes: more OpenMP threads than cores make every barrier wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"

from flashrag.errors import UserError
from tests.browser import find_chromium, open_browser
from tests.ports import held_port

if TYPE_CHECKING:
    import uvicorn
    from playwright.sync_api import Browser

# A shell that runs the tests in the background has their processes ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
NO_BROWSER = "there is no browser"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python's garbage collector passes over what the test modules import: looking through it once takes a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test in a browser is slow, whatever it does. The longest runs come first, so that none is left at the end."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line on the tests that only a browser can run, with the command that makes them run."""
    skipped = sum(NO_BROWSER in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.write_line(
            f"{skipped} browser tests were skipped; scripts/setup_browser.sh installs a Chromium"
        )


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A headless Chromium; missing in CI it is a failure. A module that uses it has no asynchronous tests."""
    try:
        find_chromium()
    except UserError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(f"{NO_BROWSER}: {error}")
    with open_browser() as browser:
        yield browser


class Running(NamedTuple):
    """An application that is served in a thread."""

    server: "uvicorn.Server"
    thread: threading.Thread
    url: str


def _start(app: Any, port: int = 0, lifespan: str = "off") -> Running:
    import uvicorn  # here: the tests of pure functions do without it

    listener = socket.create_server(("127.0.0.1", port))  # the server closes it
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan=lifespan))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    return Running(server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}")


def _stop(*running: Running) -> None:
    """Each takes a tenth of a second until it sees that it should end, so all are told first."""
    for each in running:
        each.server.should_exit = True
    for each in running:
        each.thread.join()


@contextmanager
def _served(app: Any, port: int = 0, lifespan: str = "off") -> Iterator[str]:
    running = _start(app, port, lifespan)
    try:
        yield running.url
    finally:
        _stop(running)


@pytest.fixture(scope="session")
def served() -> Callable[..., AbstractContextManager[str]]:
    """`with served(app) as url`: an ASGI application in a thread of this process, by default on a free port."""
    return _served


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Any], str]]:
    """A function that serves an ASGI application on a free port until the module is done; gives its address."""
    running: list[Running] = []

    def start(app: Any) -> str:
        running.append(_start(app))
        return running[-1].url

    yield start
    _stop(*running)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nothing listens but what the test starts there."""
    with held_port() as port:
        yield port


@pytest.fixture
def closed_url(closed_port: int) -> str:
    """An address at which nothing listens."""
    return f"http://127.0.0.1:{closed_port}"
