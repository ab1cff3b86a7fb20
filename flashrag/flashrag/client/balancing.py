"""The retrieval servers that a client may ask: their addresses, their token, and the choice of the next one.

The next server is the one with the fewest requests in flight; among equals, the one asked longest ago. A server that
fails is set aside for a while that doubles with each failure in a row; then one request at a time may try it again.
Does no I/O, but reads the clock. Does not cover: requests and retries (client.py).
"""

import asyncio
import os
import re
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import httpx

from flashrag.config import TOKEN_VARIABLE
from flashrag.errors import UserError
from flashrag.system.network import parse_address, proxy_for

FIRST_ASIDE_S = 0.5
LONGEST_ASIDE_S = 30.0
PROBE_TIMEOUT_S = 2.0  # a retrieval server answers /health at once under any load
# Routes of retrieval servers, and of the model servers whose addresses are checked here too.
_ROUTE = re.compile(r"(?<!/)/(search|batch_search|retrieve|queries|healthz?|metrics|docs|(chat/)?completions)$")


def check_address(url: str, key: str) -> str:
    """One base address without a trailing slash; raises `UserError` if it, or the proxy for it, cannot be used."""
    try:
        parsed = parse_address(url, ("http", "https"))
    except ValueError as error:
        raise UserError(
            f"{key}={url!r} is not an http address ({error}); expected e.g. http://127.0.0.1:8000"
        ) from error
    base = re.split("[?#]", url)[0].rstrip("/")
    if route := _ROUTE.search(base):
        raise UserError(f"{key}={url!r} is the address of a route; give the base address: {base[: route.start()]}")
    if parsed.query or parsed.fragment:
        raise UserError(f"{key}={url!r} goes on after ? or #, where no route can follow; give the base address: {base}")
    proxy_for(url)
    return base


def check_addresses(urls: str | Sequence[str], key: str) -> tuple[str, ...]:
    """The addresses in a comma-separated string or a sequence, without duplicates; raises `UserError` for a bad one."""
    given = urls.split(",") if isinstance(urls, str) else urls
    if not given:
        raise UserError(f"{key} names no server; expected e.g. http://127.0.0.1:8000, or several with commas between")
    return tuple(dict.fromkeys(check_address(url.strip(), key) for url in given))


def authorization(token: str | None = None) -> dict[str, str]:
    """The header with the token, by default the environment's; empty without a token. No error shows the token."""
    token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UserError(f"the token ({TOKEN_VARIABLE}) holds a space, a line break or a character that is not ASCII")
    return {"Authorization": f"Bearer {token}"} if token else {}


@dataclass(eq=False, slots=True)
class Server:
    """One server as one event loop sees it."""

    url: str
    http: httpx.AsyncClient
    slots: asyncio.Semaphore  # requests under way at once
    in_flight: int = 0
    turn: int = 0  # grows from one request to the next, over all servers
    failures: int = 0  # in a row
    failed_at: float = 0.0
    aside_until: float = 0.0

    def answered(self) -> None:
        self.failures, self.aside_until = 0, 0.0

    def busy(self, retry_after_s: float) -> None:
        """The server is alive, but the others are preferred for now."""
        self.answered()
        self.aside_until = time.monotonic() + retry_after_s

    def failed(self, asked_at: float, retry_after_s: float) -> None:
        """Set the server aside. Requests older than its last failure change nothing: a shared failure counts once."""
        if asked_at < self.failed_at:
            return
        self.failures += 1
        self.failed_at = time.monotonic()
        aside_s = min(FIRST_ASIDE_S * 2 ** (self.failures - 1), LONGEST_ASIDE_S)
        self.aside_until = self.failed_at + max(aside_s, retry_after_s)


class Servers:
    """The servers of one client in one event loop."""

    def __init__(self, servers: Iterable[Server]) -> None:
        self.all = tuple(servers)
        self._turns = count(1)

    def choose(self, tried: Collection[Server], last_resort: bool) -> Server | None:
        """The next server to ask. `last_resort` allows servers that are set aside; the first one due is chosen."""
        now = time.monotonic()
        untried = [server for server in self.all if server not in tried]
        ready = [server for server in untried if server.aside_until <= now]
        if ready:
            chosen = min(ready, key=lambda server: (server.in_flight, server.turn))
        elif untried and last_resort:
            chosen = min(untried, key=lambda server: server.aside_until)
        else:
            return None
        chosen.turn = next(self._turns)
        if chosen.failures:  # this request probes it; the others wait for the outcome
            chosen.aside_until = max(chosen.aside_until, now + PROBE_TIMEOUT_S)
        return chosen
