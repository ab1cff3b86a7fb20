"""The retrieval server's command: `python rag_serving/serving.py --config … --num_retriever N --port P`

Everything that can be refused (flags, configuration, files, port) is checked before torch or faiss is imported.
Exit codes: 0 after SIGTERM or Ctrl-C, 2 for a bad input.
"""

import argparse
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside rag_serving
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from flashrag.errors import UserError, exit_on_user_error
from flashrag.retriever import Retriever, check_assets, load_retriever_from
from rag_serving.settings import ServerSettings, read_settings

if TYPE_CHECKING:
    import uvicorn

SHUTDOWN_TIMEOUT_S = 5
BACKLOG = 2048


@dataclass(frozen=True)
class ServeOptions:
    config: Path
    num_retriever: int
    host: str
    port: int


def parse_args(argv: Sequence[str] | None = None) -> ServeOptions:
    parser = argparse.ArgumentParser(
        prog="python rag_serving/serving.py", description="Serve retrieval over HTTP.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", type=Path, default=Path(__file__).with_name("serving_config.yaml"), help="YAML, FlashRAG's keys")
    add("--num_retriever", type=_retrievers, default=1, help="search threads over one copy of the index, default 1")
    add("--host", default="127.0.0.1", help="address to listen on, default 127.0.0.1; 0.0.0.0 for other machines")
    add("--port", type=_port, default=8000, help="default 8000; 0 takes a free one")
    return ServeOptions(**vars(parser.parse_args(argv)))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_args(argv)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, _leave)
    settings = read_settings(options.config)
    with contextlib.closing(_bound_socket(options.host, options.port)) as listener:
        assets = check_assets(settings)
        print(f"loading {settings.retrieval_method} over {len(assets.corpus)} passages …", file=sys.stderr, flush=True)
        started = time.monotonic()
        retriever = load_retriever_from(assets)
        retriever.search("warm-up")  # the first search pays for lazy set-up; let it be ours
        print(f"loaded in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        _listen(listener, options)
        _serve(settings, retriever, options.num_retriever, listener)
    return 0


def _serve(settings: ServerSettings, retriever: Retriever, num_retriever: int, listener: socket.socket) -> None:
    import uvicorn

    from rag_serving.app import create_app

    app = create_app(settings, retriever, num_retriever)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S, backlog=BACKLOG
    )
    server = uvicorn.Server(config)
    host, port = listener.getsockname()[:2]
    ready = (
        f"ready: http://{f'[{host}]' if ':' in host else host}:{port} "
        f"({settings.retrieval_method}, {len(retriever.corpus)} documents, {num_retriever} retrievers)"
    )
    threading.Thread(target=_announce, args=(server, ready), daemon=True).start()
    server.run(sockets=[listener])


def _announce(server: "uvicorn.Server", ready: str) -> None:
    """Print the ready line once the server takes requests."""
    while not server.started and not server.should_exit:
        time.sleep(0.01)
    if server.started:
        print(ready, flush=True)


def _bound_socket(host: str, port: int) -> socket.socket:
    """A socket that holds the port from now on; connections are refused until `_listen`."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise UserError(f"--host {host!r} is no address of this machine ({error}); 127.0.0.1 is the default") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was in use a moment ago is free
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _port_error(host, port, error) from error
    return listener


def _listen(listener: socket.socket, options: ServeOptions) -> None:
    try:  # another server that was loading at the same time may have been faster
        listener.listen(BACKLOG)
    except OSError as error:
        raise _port_error(options.host, options.port, error) from error


def _port_error(host: str, port: int, error: OSError) -> UserError:
    return UserError(
        f"--port {port}: cannot listen on {host}:{port} ({error.strerror}); stop what uses it, or give another --port"
    )


def _leave(*_: object) -> None:
    """End at once and cleanly: uvicorn raises its signals again, for this handler, after it has shut down."""
    raise SystemExit(0)


def _retrievers(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 256:
        raise argparse.ArgumentTypeError(f"{text} was given; expected 1 to 256")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} was given; expected 0 to 65535")
    return value


if __name__ == "__main__":
    sys.exit(main())
