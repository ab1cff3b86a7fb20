"""A retrieval server's replies: the status, and the JSON.

JSON of another shape raises `ValueError`, which names the expected shape. It is never repaired: one entry too many or
too few would pair documents with the wrong query or the wrong scores.
"""

import math
import re
from contextlib import suppress
from typing import Any

import httpx

from flashrag.config import TOKEN_VARIABLE
from flashrag.document import Document, Hit
from flashrag.errors import SearchError
from flashrag.system.network import detour

RETRY_AFTER_CAP_S = 30.0


class Retryable(SearchError):
    """A failure that may pass with another attempt, or on another server; `busy` means that the server is alive."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0, busy: bool = False):
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.busy = busy


def check_alive(response: httpx.Response) -> None:
    """Raise `Retryable` for 429 and 5xx; any other status comes from a working server."""
    status = response.status_code
    busy = status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.GATEWAY_TIMEOUT)
    if busy or response.is_server_error:
        raise Retryable(_told(response), retry_after_s=_retry_after_s(response), busy=busy)


def check_status(response: httpx.Response) -> None:
    """Raise for any status but success: `Retryable` as in `check_alive`, else a final `SearchError`."""
    check_alive(response)
    if not response.is_success:
        hint = f"; {TOKEN_VARIABLE} must hold the server's token" if response.status_code == 401 else ""
        raise SearchError(_told(response) + hint)


def excerpt(content: bytes) -> str:
    return content[:200].decode(errors="replace")


def _told(response: httpx.Response) -> str:
    url = str(response.request.url)
    return f"{url} answered {response.status_code}: {excerpt(response.content)}{detour(url)}"


def _retry_after_s(response: httpx.Response) -> float:
    """Retry-After in seconds, capped; 0 if it is absent or a date, which would need synchronised clocks."""
    text = response.headers.get("Retry-After", "").strip()
    return min(float(text), RETRY_AFTER_CAP_S) if re.fullmatch(r"[0-9]{1,9}", text) else 0.0


def parse_documents(payload: Any, top_n: int) -> list[Document]:
    """`[{"id", "contents"}, …]`, at most `top_n`."""
    if not isinstance(payload, list) or len(payload) > top_n:
        raise ValueError(f"expected a list of at most {top_n} objects with id and contents")
    return [_document(item) for item in payload]


def parse_scored(payload: Any, top_n: int) -> list[Hit]:
    """`[[{"id", "contents"}, …], [score, …]]`."""
    documents, scores = _pair(payload)
    return _hits(documents, scores, top_n)


def parse_ranked(payload: Any, num_queries: int, top_n: int) -> list[list[Hit]]:
    """`[[[{"id", "contents"}, …], …], [[score, …], …]]`, both with an entry for each query."""
    documents_of, scores_of = _pair(payload)
    if len(documents_of) != num_queries or len(scores_of) != num_queries:
        raise ValueError(
            f"expected documents and scores of {num_queries} queries, got {len(documents_of)} and {len(scores_of)}"
        )
    return [_hits(documents, scores, top_n) for documents, scores in zip(documents_of, scores_of, strict=True)]


def _pair(payload: Any) -> tuple[list[Any], list[Any]]:
    match payload:
        case [list() as documents, list() as scores]:
            return documents, scores
    raise ValueError("expected a list of documents and a list of scores")


def _hits(documents: Any, scores: Any, top_n: int) -> list[Hit]:
    found = parse_documents(documents, top_n)
    if not isinstance(scores, list) or len(scores) != len(found):
        raise ValueError(f"expected {len(found)} scores for {len(found)} documents")
    return [Hit(document, _number(score)) for document, score in zip(found, scores, strict=True)]


def _number(score: Any) -> float:
    if isinstance(score, int | float) and not isinstance(score, bool):
        with suppress(OverflowError):  # JSON allows integers that no float can hold
            if math.isfinite(score):
                return float(score)
    raise ValueError("expected finite numbers as scores")


def _document(item: Any) -> Document:
    match item:
        case {"id": str() | int() as document_id, "contents": str() as contents}:
            return Document(str(document_id), contents)
    raise ValueError("expected documents with id and contents")
