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


def first_choice(payload: Any) -> Any:
    """The first choice of a reply. Raises `ValueError` where there is none, or none with text, ids or a message."""
    choice = next(iter(getattr(payload, "choices", None) or ()), None)
    if all(getattr(choice, name, None) is None for name in ("text", "token_ids", "message")):
        raise ValueError("the reply holds no choice")
    return choice


def read_completion(payload: Any) -> Completion:
    """The first choice of a reply of the completion or of the chat route. Raises `ValueError` where there is none."""
    choice = first_choice(payload)
    text = getattr(choice, "text", None)
    if text is None:
        text = getattr(choice.message, "content", None)
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
