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


def first_choice(payload: Any) -> dict[str, Any]:
    """The first choice of a reply. Raises `ValueError` where there is none, or none with text, ids or a message."""
    choices = payload.get("choices") if isinstance(payload, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or all(choice.get(name) is None for name in ("text", "token_ids", "message")):
        raise ValueError("the reply holds no choice")
    return choice


def read_completion(payload: Any) -> Completion:
    """The first choice of a reply of the completion or of the chat route. Raises `ValueError` where there is none."""
    choice = first_choice(payload)
    text = choice.get("text")
    if text is None:
        text = (choice.get("message") or {}).get("content")
    usage = payload.get("usage") or {}
    return Completion(
        text=text or "",
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        tokens=_scored_tokens(choice.get("logprobs") or {}),
    )


def _scored_tokens(logprobs: dict[str, Any]) -> tuple[ScoredToken, ...] | None:
    """Both routes' shapes: parallel lists, or one object for each token."""
    if (content := logprobs.get("content")) is not None:
        return tuple(ScoredToken(token["token"], token["logprob"]) for token in content)
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not tokens or not values:
        return None
    return tuple(ScoredToken(text, value) for text, value in zip(tokens, values, strict=True) if value is not None)
