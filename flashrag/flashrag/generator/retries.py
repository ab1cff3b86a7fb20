"""Which requests to a model server are tried again, how long to wait, and the one error at the end."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from flashrag.errors import GenerationError

Reply = TypeVar("Reply")

_jittered = wait_random_exponential(multiplier=0.25, max=10.0)
_MAX_ASKED_WAIT_S = 60.0


async def with_retries(request: Callable[[], Awaitable[Reply]], url: str, max_retries: int) -> Reply:
    """The reply to a request that is tried at most `1 + max_retries` times. Raises `GenerationError` naming `url`.

    `request` raises the openai client's errors, or `ValueError` for a reply that cannot be read.
    """
    attempts = AsyncRetrying(
        retry=retry_if_exception(_may_pass), wait=_wait_s, stop=stop_after_attempt(1 + max_retries), reraise=True
    )
    try:
        return await attempts(request)
    except (openai.OpenAIError, ValueError) as error:
        # A time-out's own text is empty.
        cause = f" ({type(error.__cause__).__name__} {error.__cause__}".rstrip() + ")" if error.__cause__ else ""
        tries = attempts.statistics["attempt_number"]
        raise GenerationError(f"{url}: {error}{cause} (attempt {tries} of {1 + max_retries})") from error


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: a lost connection, a stall, a busy or broken server, a cut-off reply."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError | ValueError)


def _wait_s(state: RetryCallState) -> float:
    """The server's own `Retry-After` where it gives one in seconds, else a random, growing time."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    return min(float(asked), _MAX_ASKED_WAIT_S) + _jittered(state) if asked.isdecimal() else _jittered(state)
