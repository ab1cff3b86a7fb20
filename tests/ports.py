"""Ports of this machine that nobody else gets: a free one that is only drawn may be given to another test process."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A port at which nothing listens but what the test starts there, once or many times."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server of the test may bind it, too
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
