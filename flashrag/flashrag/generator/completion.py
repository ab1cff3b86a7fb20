"""One request for text: the reply of a model server, and which requests are tried again. Imports openai on call."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from flashrag.errors import GenerationError
from flashrag.system.network import detour

Reply = TypeVar("Reply")

BROKEN_OFF = ("abort", "error")  # the finish reasons of a request that SGLang or vLLM gave up
MAX_ASKED_WAIT_S = 60.0  # the longest Retry-After that is obeyed
_jitter = wait_random_exponential(multiplier=0.25, max=10.0)


class ScoredToken(NamedTuple):
    """One sampled token as text, with its log-probability."""

    text: str
    log_prob: float


@dataclass(frozen=True, slots=True)
class Completion:
    """Text without the stop string that ended it; `tokens` is None where no log-probabilities came back.

    `stop` is that string, None if the text ended otherwise or the server does not tell.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[ScoredToken, ...] | None = None
    stop: str | None = None


def first_choice(payload: Any) -> dict[str, Any]:
    """The first choice of a reply. Raises `ValueError` unless it has text, ids or a message, and is complete."""
    choices = payload.get("choices") if isinstance(payload, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or all(choice.get(name) is None for name in ("text", "token_ids", "message")):
        raise ValueError("the reply holds no choice")
    if choice.get("finish_reason") in BROKEN_OFF:
        raise ValueError(f"the server broke the request off (finish_reason: {choice['finish_reason']})")
    return choice


def end_of_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string in a text ends, None if it holds none.

    >>> end_of_stop("a</search>\\n\\n", ["</search>"])
    10
    """
    ends = [start + len(stop) for stop in stops if (start := text.find(stop)) >= 0]
    return min(ends, default=None)


def matched_stop(choice: Mapping[str, Any]) -> str | int | None:
    """The stop string or token that ended a reply: vLLM's `stop_reason`, SGLang's `matched_stop`; no other tells it."""
    matched: str | int | None = choice.get("stop_reason")
    return choice.get("matched_stop") if matched is None else matched


def split_at_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text up to the first stop string in it, and that string; the whole text and None if it holds none.

    >>> split_at_stop("King Wu; Question:", ["Question:", ";"])
    ('King Wu', ';')
    """
    found = [(start, stop) for stop in stops if (start := text.find(stop)) >= 0]
    start, stop = min(found, default=(len(text), None))
    return text[:start], stop


class JoinedChoice:
    """The first choice of a streamed reply, joined from its parts: texts and ids add up, of the rest the last counts.

    If a part with text has no ids, the whole has none: it is then as from a server that returns text only.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._ids: list[int] | None = None
        self._lacks_ids = False
        self._rest: dict[str, Any] = {}

    @property
    def ended(self) -> bool:
        return self._rest.get("finish_reason") is not None

    def add(self, part: Any) -> str:
        """The text of one part; "" for one without a choice, such as the usage."""
        choices = part.get("choices") if isinstance(part, dict) else None
        if not choices:
            return ""
        text, ids = choices[0].get("text") or "", choices[0].get("token_ids")
        self._texts.append(text)
        if ids is not None:
            self._ids = self._ids or []
            self._ids += ids
        elif text:
            self._lacks_ids = True
        self._rest |= {key: value for key, value in choices[0].items() if value is not None}
        return text

    def payload(self) -> dict[str, Any]:
        """As of a reply that came whole. Raises `ValueError` if the last part is missing."""
        if not self.ended:
            raise ValueError("the streamed reply broke off before its end")
        ids = None if self._lacks_ids else self._ids
        return {"choices": [{**self._rest, "text": "".join(self._texts), "token_ids": ids}]}


def read_completion(payload: Any, stops: Sequence[str] = ()) -> Completion:
    """The first choice of a reply of the completion or of the chat route. Raises `ValueError` when there is none.

    It ends before the first stop string, also where the server has missed it: SGLang looks for one in the last few
    tokens only, and earlier releases leave it in the text if it ends with the last token that was allowed.
    """
    choice = first_choice(payload)
    whole = choice.get("text")
    if whole is None:
        whole = (choice.get("message") or {}).get("content")
    (text, missed), usage = split_at_stop(whole or "", stops), payload.get("usage") or {}
    tokens, matched = _scored_tokens(choice.get("logprobs") or {}), matched_stop(choice)
    return Completion(
        text=text,
        finish_reason="stop" if missed else choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        tokens=_first_tokens(tokens, len(text)) if missed and tokens else tokens,
        stop=missed or (matched if isinstance(matched, str) else None),
    )


def _first_tokens(tokens: Sequence[ScoredToken], length: int) -> tuple[ScoredToken, ...]:
    """The tokens that write the first `length` characters."""
    starts = accumulate((len(token.text) for token in tokens), initial=0)
    return tuple(token for token, start in zip(tokens, starts, strict=False) if start < length)


def _scored_tokens(logprobs: dict[str, Any]) -> tuple[ScoredToken, ...] | None:
    """Both routes' shapes: parallel lists, or one object for each token."""
    if (content := logprobs.get("content")) is not None:
        return tuple(ScoredToken(token["token"], token["logprob"]) for token in content)
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not tokens or not values:
        return None
    return tuple(ScoredToken(text, value) for text, value in zip(tokens, values, strict=True) if value is not None)


async def with_retries(request: Callable[[], Awaitable[Reply]], url: str, max_retries: int) -> Reply:
    """The reply to a request that is tried at most `1 + max_retries` times. Raises `GenerationError` naming `url`.

    `request` raises the openai client's errors, or `ValueError` for a reply that cannot be read.
    """
    import openai

    attempts = AsyncRetrying(
        retry=retry_if_exception(_may_pass), wait=_wait_s, stop=stop_after_attempt(1 + max_retries), reraise=True
    )
    try:
        return await attempts(request)
    except (openai.OpenAIError, ValueError) as error:
        # A time-out's own text is empty.
        cause = f" ({type(error.__cause__).__name__} {error.__cause__}".rstrip() + ")" if error.__cause__ else ""
        tries = attempts.statistics["attempt_number"]
        tried = f"(attempt {tries} of {1 + max_retries})"
        raise GenerationError(f"{url}: {error}{cause} {tried}{detour(url)}") from error


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: a lost connection, a stall, a busy or broken server, a cut-off reply."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError | ValueError)


def _wait_s(state: RetryCallState) -> float:
    """A random, growing time, after the server's own `Retry-After` where it gives one in seconds."""
    error = state.outcome.exception() if state.outcome else None
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    return (min(float(asked), MAX_ASKED_WAIT_S) if asked.isdecimal() else 0.0) + _jitter(state)
