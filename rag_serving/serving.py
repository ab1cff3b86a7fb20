"""The retrieval server's command: `python rag_serving/serving.py --config … --num_retriever N --port P`

A preflight (preflight.py) looks at flags, configuration, port and files before torch is imported; `--check` ends there.
Then the port answers "loading" while the retriever is loaded. The first SIGTERM or Ctrl-C drains: new searches are
refused, those in hand are finished.
Exit codes: 0 after that, 2 for a bad input, 128 + its number for a second signal, which ends the process at once.
"""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside rag_serving
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import uvicorn

from flashrag.errors import UserError, exit_on_user_error
from flashrag.preflight import CHECK_HELP, enforce, examine, show_check
from flashrag.retriever import Retriever, check_assets, load_retriever_from, prepare_process
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.garbage import shorten_pauses
from rag_serving.app import create_app
from rag_serving.preflight import BACKLOG, PLAN, SERVING_RULES, ServingFacts
from rag_serving.service import Service, Status
from rag_serving.settings import ServerSettings
from rag_serving.workers import Facts, ProcessWorkers

# Longer than clients keep an idle connection (aiohttp 15 s, httpx 5 s): a server that closes first may close it just
# as the next request arrives.
KEEP_ALIVE_S = 75
CLOSE_TIMEOUT_S = 1  # for connections, once every request is answered


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Serve retrieval over HTTP. docs/serving.md describes its routes and its configuration."""

    config: Path = flag(
        "YAML file that names index, corpus and encoder, and limits requests "
        "(default: rag_serving/serving_config.yaml)",
        Path(__file__).with_name("serving_config.yaml"), group="search",
    )  # fmt: skip
    num_retriever: int = flag(
        "searches that may run at once, from 1 to 256, each in a thread; they share one copy of the index",
        1, group="search", type=in_range(int, 1, 256),
    )  # fmt: skip
    host: str = flag("to listen on; 0.0.0.0 for other machines", "127.0.0.1", group="address", metavar="ADDRESS")
    port: int = flag(
        "to listen on, TCP; 0 takes a free one, which the line `ready: …` names",
        8000, group="address", type=in_range(int, 0, 65535), metavar="PORT",
    )  # fmt: skip
    check: bool = flag(CHECK_HELP, False, group="address")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(ServeOptions, "python rag_serving/serving.py", argv)
    prepare_process(options.num_retriever)
    facts = ServingFacts(options.config, options.num_retriever, options.host, options.port)
    try:
        findings = examine(SERVING_RULES, facts)
        if options.check:
            return show_check(PLAN, facts, findings)
        enforce(findings)
        server = _Server(facts)
        server.run(sockets=[facts.listener])
    finally:
        with contextlib.suppress(UserError):
            facts.listener.close()
    if server.failure is not None:
        raise server.failure
    return 0


def _load(settings: ServerSettings) -> Retriever:
    started = time.monotonic()
    assets = check_assets(settings)
    print(f"loading {settings.retrieval_method} over {len(assets.corpus)} passages …", file=sys.stderr, flush=True)
    retriever = load_retriever_from(assets)
    print(f"loaded in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return retriever


class _Server(uvicorn.Server):
    """uvicorn, with a ready line, an end when loading fails, and draining."""

    def __init__(self, facts: ServingFacts) -> None:
        settings = facts.settings
        app = create_app(settings, ProcessWorkers(partial(_load, settings), facts.num_retriever))
        super().__init__(uvicorn.Config(
            app, log_level="warning", access_log=False, backlog=BACKLOG,
            timeout_graceful_shutdown=CLOSE_TIMEOUT_S, timeout_keep_alive=KEEP_ALIVE_S,
        ))  # fmt: skip
        self.failure: BaseException | None = None
        self.service: Service = app.state.service
        self._drain_timeout_s = settings.drain_timeout_s
        self._drain_until: float | None = None
        self._url = facts.url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.service.loaded.add_done_callback(self._announce)

    def _announce(self, loaded: asyncio.Task[Facts]) -> None:
        if loaded.cancelled():  # the server ends already
            return
        self.failure = loaded.exception()
        if self.failure is not None:
            self.should_exit = True
        elif self.service.status is Status.HEALTHY:
            facts, count = loaded.result(), self.service.workers.count
            shorten_pauses()
            print(f"ready: {self._url} ({facts.method}, {facts.documents} documents, {count} retrievers)", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  (uvicorn's interface)
        if self._drain_until is not None:
            os._exit(128 + sig)
        self._drain_until = time.monotonic() + self._drain_timeout_s
        self.service.status = Status.DRAINING  # no new searches

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until is not None and (not self.service.in_hand or time.monotonic() > self._drain_until):
            self.should_exit = True
        return await super().on_tick(counter)


if __name__ == "__main__":
    sys.exit(main())
