"""What a model server answered to one request for text."""

from dataclasses import dataclass
from typing import Any, NamedTuple


class ScoredToken(NamedTuple):
    """One sampled token as text, with its log-probability."""

    text: str
    log_prob: float


@dataclass(frozen=True, slots=True)
class Completion:
    """Text without the stop string that ended it; `tokens` is None where no log-probabilities came back."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[ScoredToken, ...] | None = None


def read_completion(payload: Any) -> Completion:
    """The first choice of a reply of the completion or of the chat route. Raises `ValueError` when there is none."""
    choices = getattr(payload, "choices", None)
    if not choices:
        raise ValueError("the reply holds no choice")
    choice = choices[0]
    text = choice.message.content if hasattr(choice, "message") else choice.text
    usage = getattr(payload, "usage", None)
    return Completion(
        text=text or "",
        finish_reason=choice.finish_reason,
        prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
        completion_tokens=getattr(usage, "completion_tokens", 0) or 0,
        tokens=_scored_tokens(choice.logprobs),
    )


def _scored_tokens(logprobs: Any) -> tuple[ScoredToken, ...] | None:
    """Both routes' shapes: parallel lists, or one object for each token."""
    content = getattr(logprobs, "content", None)
    if content is not None:
        return tuple(ScoredToken(token.token, token.logprob) for token in content)
    tokens, values = getattr(logprobs, "tokens", None), getattr(logprobs, "token_logprobs", None)
    if not tokens or not values:
        return None
    return tuple(ScoredToken(text, value) for text, value in zip(tokens, values, strict=True) if value is not None)
