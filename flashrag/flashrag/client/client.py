"""The client of the retrieval server: pooled, bounded in time and attempts, one typed error at the end.

Requests are spread over several servers. An attempt asks each server at most once before it counts as failed, so no
search fails while one server answers. Transport errors, 429 and 5xx are tried again with jittered back-off, never
sooner than the server's Retry-After; any other answer is final at once. A search that gets no answer raises
`SearchError`; it never returns None or an empty list. balancing.py chooses the next server, reply.py checks a reply.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

import aiohttp
import httpx
from httpx_aiohttp import HttpxAiohttpClient
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from flashrag.client.balancing import PROBE_TIMEOUT_S, Server, Servers, authorization, check_addresses
from flashrag.client.reply import (
    Retryable,
    check_alive,
    check_status,
    excerpt,
    parse_documents,
    parse_ranked,
    parse_scored,
)
from flashrag.document import Document, Hit
from flashrag.errors import SearchError
from flashrag.system.network import client_settings, detour, proxy_for

CONNECT_TIMEOUT_S = 5.0
BATCH_QUERIES = 64  # per request: well under a server's limits, and small enough to find room in its queue
BATCH_REQUESTS = 8  # in flight for one batch_search
T = TypeVar("T")
parsed_url = lru_cache(maxsize=256)(httpx.URL)  # parsing an address takes a tenth of a request's time
_BACK_OFF = wait_random_exponential(multiplier=0.25, max=10.0)


class RetrievalClient:
    """Searches one or several retrieval servers; safe for any number of coroutines, in any number of event loops.

    `url` is an address, several separated by commas, or a sequence. `timeout_s` limits a request, `deadline_s` a search
    with all its attempts, `max_connections` the connections to each server. `token` is the servers' bearer token, by
    default the environment variable RESEARCH_SERVER_TOKEN. Raises `UserError` for an unusable address, token or proxy.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        top_n: int = 5,
        timeout_s: float = 30.0,
        deadline_s: float = 120.0,
        max_attempts: int = 10,
        max_connections: int = 256,
        token: str | None = None,
    ):
        self.urls = check_addresses(url, "search_url")
        self.top_n = top_n
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts
        self._max_connections = max_connections
        self._headers = {"Content-Type": "application/json", **authorization(token)}
        # A connection belongs to the event loop that opened it.
        self._servers_of: WeakKeyDictionary[asyncio.AbstractEventLoop, Servers] = WeakKeyDictionary()

    async def search(self, query: str) -> list[Document]:
        """The `top_n` documents for a query, best first. Raises `SearchError`."""
        body = {"query": query, "top_n": self.top_n}
        return await self._ask("/search", body, lambda payload: parse_documents(payload, self.top_n))

    async def search_scored(self, query: str, top_n: int | None = None) -> list[Hit]:
        """The documents for a query with their scores, best first. Raises `SearchError`."""
        num = self.top_n if top_n is None else top_n
        body = {"query": query, "top_n": num, "return_score": True}
        return await self._ask("/search", body, lambda payload: parse_scored(payload, num))

    async def batch_search(self, queries: Sequence[str], top_n: int | None = None) -> list[list[Hit]]:
        """`search_scored` of each query, in the order of the queries. Raises `SearchError` when any of them fails.

        The queries are sent in parts of `BATCH_QUERIES`, each with its own deadline.
        """
        num = self.top_n if top_n is None else top_n
        queries, room = list(queries), asyncio.Semaphore(BATCH_REQUESTS)

        async def part(some: list[str]) -> list[list[Hit]]:
            body = {"query": some, "top_n": num, "return_score": True}
            async with room:
                return await self._ask("/batch_search", body, lambda payload: parse_ranked(payload, len(some), num))

        starts = range(0, len(queries), BATCH_QUERIES)
        try:
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(part(queries[start : start + BATCH_QUERIES])) for start in starts]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [hits for task in parts for hits in task.result()]

    async def _ask(self, route: str, body: dict[str, Any], parse: Callable[[Any], T]) -> T:
        """The parsed answer to a request, which is repeated until it succeeds or its attempts or its time run out."""
        deadline = time.monotonic() + self._deadline_s
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(Retryable),
            wait=_wait_s,
            stop=stop_after_attempt(self._max_attempts) | stop_before_delay(self._deadline_s),
            retry_error_callback=_raise_last,
        )
        # ASCII escapes can carry even a lone surrogate, which the server then refuses.
        server, content = await attempts(self._ask_each, route, json.dumps(body).encode("ascii"), deadline)
        try:
            return parse(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise SearchError(
                f"{server.url}{route} answered {excerpt(content)!r}; {error}{detour(server.url)}"
            ) from error

    async def _ask_each(self, route: str, body: bytes, deadline: float) -> tuple[Server, bytes]:
        """One attempt: ask one server after the other until one answers."""
        servers = self._servers()
        errors: dict[Server, Retryable] = {}
        # A server that is set aside is asked when all others failed, not when one of them is merely busy.
        while server := servers.choose(errors, last_resort=not any(error.busy for error in errors.values())):
            left_s = deadline - time.monotonic()
            # A server that hangs must leave time to ask the others.
            timeout_s = max(0.001, min(self._timeout_s, left_s / (len(servers.all) - len(errors))))
            try:
                return server, await self._ask_one(server, route, body, timeout_s)
            except Retryable as error:
                errors[server] = error
        retry_after_s = min(error.retry_after_s for error in errors.values())
        raise Retryable("; ".join(map(str, errors.values())), retry_after_s=retry_after_s)

    async def _ask_one(self, server: Server, route: str, body: bytes, timeout_s: float) -> bytes:
        """One request; its outcome is recorded with the server."""
        asked_at = time.monotonic()
        server.in_flight += 1
        try:
            async with asyncio.timeout(timeout_s), server.slots:
                if server.failures and len(self.urls) > 1:
                    check_alive(await server.http.get("/health", timeout=PROBE_TIMEOUT_S))
                left_s = asked_at + timeout_s - time.monotonic()
                headers = {**self._headers, "X-Request-Timeout": f"{left_s:.3f}"}
                response = await server.http.post(parsed_url(server.url + route), content=body, headers=headers)
                check_alive(response)
        except (httpx.RequestError, aiohttp.ClientError, TimeoutError) as error:
            server.failed(asked_at, retry_after_s=0.0)
            raise Retryable(f"{server.url}{route} {_failure(error, timeout_s)}{detour(server.url)}") from error
        except Retryable as error:
            if error.busy:
                server.busy(error.retry_after_s)
            else:
                server.failed(asked_at, error.retry_after_s)
            raise
        finally:
            server.in_flight -= 1
        server.answered()
        check_status(response)
        return response.content

    def _servers(self) -> Servers:
        """The servers as the running event loop sees them."""
        loop = asyncio.get_running_loop()
        if loop not in self._servers_of:
            self._servers_of[loop] = Servers([self._server(url) for url in self.urls])
        return self._servers_of[loop]

    def _server(self, url: str) -> Server:
        # A request waits for a slot, never for the pool, so that the remaining time that it states stays true.
        # On aiohttp a request costs the same at any number of connections; httpx's own pool looks at each of them.
        # Behind a proxy httpx's pool serves, because aiohttp knows no SOCKS proxies.
        connect_s = min(CONNECT_TIMEOUT_S, self._timeout_s)
        timeout = httpx.Timeout(connect=connect_s, read=self._timeout_s, write=self._timeout_s, pool=connect_s)
        limits = httpx.Limits(max_connections=self._max_connections, max_keepalive_connections=self._max_connections)
        kind = httpx.AsyncClient if proxy_for(url) else HttpxAiohttpClient
        http = kind(base_url=url, timeout=timeout, limits=limits, **client_settings(url))
        return Server(url, http, asyncio.Semaphore(self._max_connections))

    async def aclose(self) -> None:
        """Close the connections that the running event loop opened."""
        if servers := self._servers_of.pop(asyncio.get_running_loop(), None):
            for server in servers.all:
                await server.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _failure(error: Exception, timeout_s: float) -> str:
    # httpx reports a lost connection as a time-out too; aiohttp's own error tells them apart.
    cause = error.__cause__ if isinstance(error, httpx.TimeoutException) else error
    if isinstance(cause, TimeoutError):
        return f"did not answer within {timeout_s:.3g} s"
    return " ".join(f"cannot be reached: {type(cause).__name__} {cause}".split())  # text may be absent or long


def _wait_s(state: RetryCallState) -> float:
    assert state.outcome is not None, "called after an attempt"
    failure = state.outcome.exception()
    assert isinstance(failure, Retryable), "nothing else is tried again"
    return max(_BACK_OFF(state), failure.retry_after_s)


def _raise_last(state: RetryCallState) -> None:
    assert state.outcome is not None and state.seconds_since_start is not None, "called after an attempt"
    last = state.outcome.exception()
    spent = f"{state.attempt_number} attempts, {state.seconds_since_start:.1f} s"
    raise SearchError(f"{last} (gave up after {spent})") from last
