"""The client of the retrieval server: pooled, bounded in time and attempts, one typed error at the end.

Transport errors, 429 and 5xx are tried again with jittered back-off; any other answer is final at once. What cannot be
had raises `SearchError`: never None, never an empty list in its place.
"""

import re
from typing import Any, Self

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from flashrag.document import Document
from flashrag.errors import SearchError, UserError

# A name or an address, IPv6 included, as httpx holds it; it lets other characters through.
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")


class _Retryable(SearchError):
    """A failure that another attempt may mend."""


class RetrievalClient:
    """Searches one retrieval server; safe for any number of coroutines of one event loop."""

    def __init__(
        self, url: str, *, top_n: int = 5, timeout_s: float = 30.0, max_attempts: int = 5, max_connections: int = 256
    ):
        self.url = check_search_url(url)
        self.top_n = top_n
        self._max_attempts = max_attempts
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, pool=None),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
        )

    async def search(self, query: str) -> list[Document]:
        """The `top_n` documents for a query, best first. Raises `SearchError`."""
        payload = await self._post("/search", {"query": query, "top_n": self.top_n})
        documents = _parse_documents(payload)
        if documents is None:
            raise SearchError(
                f"{self.url}/search answered {str(payload)[:200]!r}; expected a list of objects with id and contents"
            )
        return documents

    async def _post(self, route: str, body: dict[str, Any]) -> Any:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_Retryable),
            wait=wait_random_exponential(multiplier=0.25, max=10.0),
            stop=stop_after_attempt(self._max_attempts),
            retry_error_callback=_raise_last,
        )
        return await attempts(self._post_once, route, body)

    async def _post_once(self, route: str, body: dict[str, Any]) -> Any:
        try:
            response = await self._http.post(route, json=body)
        except httpx.RequestError as error:
            # A time-out's own text is empty.
            raise _Retryable(f"{self.url}{route} cannot be reached: {type(error).__name__} {error}".rstrip()) from error
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
            raise _Retryable(f"{self.url}{route} answered {response.status_code}: {response.text[:200]}")
        if not response.is_success:
            raise SearchError(f"{self.url}{route} answered {response.status_code}: {response.text[:200]}")
        try:
            return response.json()
        except ValueError as error:
            raise SearchError(f"{self.url}{route} answered no JSON: {response.text[:200]!r}") from error

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _parse_documents(payload: Any) -> list[Document] | None:
    """The documents of a reply; None when it has another shape."""
    if not isinstance(payload, list):
        return None
    documents = []
    for item in payload:
        match item:
            case {"id": str() | int() as document_id, "contents": str() as contents}:
                documents.append(Document(str(document_id), contents))
            case _:
                return None
    return documents


def _raise_last(state: RetryCallState) -> None:
    assert state.outcome is not None, "called after an attempt"
    last = state.outcome.exception()
    raise SearchError(f"{last} (gave up after {state.attempt_number} attempts)") from last


def check_search_url(url: str, key: str = "search_url") -> str:
    """The address without a trailing slash; raises `UserError` naming `key` when it is no http(s) address."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"{key}={url!r} is no address ({error}); expected e.g. http://127.0.0.1:8000") from error
    if parsed.scheme not in ("http", "https") or not _HOST.fullmatch(parsed.raw_host):
        raise UserError(f"{key}={url!r} is no http address; expected e.g. http://127.0.0.1:8000")
    return url.rstrip("/")


def check_server(url: str, *, timeout_s: float = 5.0, key: str = "search_url") -> None:
    """Raise `UserError`, naming `key`, unless a healthy retrieval server answers at `url`."""
    url = check_search_url(url, key)
    remedy = "start one with: python rag_serving/serving.py --config rag_serving/serving_config.yaml --port P"
    try:
        response = httpx.get(f"{url}/health", timeout=timeout_s)
    except httpx.RequestError as error:
        raise UserError(f"no retrieval server answers at {key}={url} ({error}); {remedy}") from error
    if not response.is_success:
        raise UserError(f"{key}={url}/health answered {response.status_code}, expected 200; {remedy}")
