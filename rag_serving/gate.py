"""The ASGI layer in front of the routes: it decides who gets in, with how large a body, and for how long.

It refuses before any work is done: 401 without the token, 503 while the server loads or drains, 413 for a large body.
At the deadline it answers 504. When a client goes away, its request ends at once.
"""

import asyncio
import hmac
import math
from collections.abc import Mapping
from contextlib import suppress

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_serving.metrics import Refusal
from rag_serving.searcher import RETRY_AFTER_S
from rag_serving.service import Service, Status

TIMEOUT_HEADER = "X-Request-Timeout"
CLIENT_GONE = 499  # nginx's number; nobody reads the answer, but requests are counted by status
SEARCH_ROUTES = frozenset({"/search", "/batch_search", "/retrieve", "/queries"})
GUARDED_ROUTES = SEARCH_ROUTES | {"/metrics"}


class Gate:
    def __init__(self, app: ASGIApp, service: Service, token: str | None) -> None:
        self.app = app
        self._service = service
        self._expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if scope["type"] != "http" or path not in GUARDED_ROUTES:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._may_enter(headers):
            answer = _refusal(401, "give the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
        elif path not in SEARCH_ROUTES:
            await self.app(scope, receive, send)
        elif answer := self._not_now(headers):
            await answer(scope, receive, send)
        elif (asked_s := _asked_timeout_s(headers)) is None:
            problem = {
                "type": "float_parsing",
                "loc": ["header", TIMEOUT_HEADER],
                "msg": "expected a number of seconds",
            }
            await JSONResponse({"detail": [problem]}, 422)(scope, receive, send)
        else:
            timeout_s = min(self._service.settings.request_timeout_s, asked_s)
            await self._within(timeout_s, scope, receive, send)

    def _may_enter(self, headers: Headers) -> bool:
        given = headers.get("authorization", "").encode("latin-1")
        return self._expected is None or hmac.compare_digest(given, self._expected)

    def _not_now(self, headers: Headers) -> JSONResponse | None:
        if self._service.status is not Status.HEALTHY:
            if self._service.status in (Status.LOADING, Status.DRAINING):
                self._service.metrics.refused.labels(Refusal(self._service.status.value)).inc()
            return _refusal(503, f"the server is {self._service.status}", {"Retry-After": str(RETRY_AFTER_S)})
        limit = self._service.settings.max_body_bytes
        with suppress(ValueError):  # without a valid length the bytes are counted as they arrive
            if int(headers.get("content-length", "")) > limit:
                return _refusal(413, _too_large(limit))
        return None

    async def _within(self, timeout_s: float, scope: Scope, receive: Receive, send: Send) -> None:
        visit = _Visit(receive, send, self._service.settings.max_body_bytes, asyncio.timeout(max(timeout_s, 0)))
        self._service.in_hand += 1
        try:
            async with visit.limit:
                await self.app(scope, visit.receive, visit.send)
        except TimeoutError:
            reason = Refusal.GONE if visit.gone else Refusal.DEADLINE
            self._service.metrics.refused.labels(reason).inc()
            if not visit.answering:
                status = CLIENT_GONE if visit.gone else 504
                await _refusal(status, f"not answered within {timeout_s:g} s")(scope, receive, send)
        finally:
            visit.end()
            self._service.in_hand -= 1


class _Visit:
    """One request on its way through: counts the body's bytes, then watches whether the client leaves."""

    def __init__(self, receive: Receive, send: Send, max_body_bytes: int, limit: asyncio.Timeout) -> None:
        self.limit = limit
        self.gone = False
        self.answering = False
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._body_bytes = 0
        self._watch: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._leave()
        self._body_bytes += len(message.get("body", b""))
        if self._body_bytes > self._max_body_bytes:
            raise HTTPException(413, _too_large(self._max_body_bytes))
        if self._watch is None and not message.get("more_body", False):
            self._watch = asyncio.create_task(self._watch_client())
        return message

    async def send(self, message: Message) -> None:
        self.answering = True
        await self._send(message)

    def end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None  # its error refers back to this object: a reference cycle

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if not self.answering:  # uvicorn also says "disconnect" after a complete answer
            self.gone = True
            self.limit.reschedule(asyncio.get_running_loop().time())


def _asked_timeout_s(headers: Headers) -> float | None:
    """The header's seconds, infinite where there is no header; None where it is not a number."""
    with suppress(ValueError):
        asked_s = float(headers.get(TIMEOUT_HEADER, "inf"))
        return None if math.isnan(asked_s) else asked_s
    return None


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes (max_body_bytes)"


def _refusal(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
