"""What the model server of an evaluation says about itself. It is asked once, and given seconds.

Does not cover: what follows from the answers (rules.py), retrieval servers (flashrag.client).
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

from evaluation.preflight.request import Request
from evaluation.settings import EvalSettings
from flashrag.errors import GenerationError
from flashrag.generator.server import ServerLimits, api_key, find_served_card, is_sglang, server_limits
from flashrag.system.network import ask

ANSWER_S = 5.0
REFUSALS = range(400, 500)
PASSING = (408, 409, 429)
# Letters, digits, tags and accents: two tokenizers that agree on it are the same for all practical purposes.
SAMPLE = 'Où est "Saïgon", 1969? <think>\n it\'s 3.5 km </think> <search> \\boxed{ 東京 } </search>'


class ServedModel(NamedTuple):
    """A model as its server lists it; `root` is the path or hub's name that it was loaded from, None if not said.

    `sample_ids` are the server's tokens of `SAMPLE`, None from a server without the route.
    """

    name: str
    limits: ServerLimits
    root: str | None
    version: str | None
    sample_ids: list[int] | None
    ignores_seed: bool = False


def ask_model_server(settings: EvalSettings) -> ServedModel:
    """What the model server says; raises `UserError` unless it serves the model with enough context."""
    key = api_key("OPENAI_API_KEY") or "EMPTY"
    card = find_served_card(settings, key)
    name, root = str(card["id"]), card.get("root")
    info = _json(f"{settings.sgl_remote_url}/{'server_info' if is_sglang(card) else 'version'}", key) or {}
    if is_sglang(card):  # its `root` is the served name
        root = info.get("model_path")
    body = {"model": name, "prompt": SAMPLE, "add_special_tokens": False}
    tokenized = _json(f"{settings.sgl_remote_url}/tokenize", key, body) or {}
    ids = tokenized.get("tokens")
    return ServedModel(
        name,
        server_limits(card, settings.generator_model),
        root,
        info.get("version"),
        ids if isinstance(ids, list) else None,
        is_sglang(card) and not (info.get("enable_deterministic_inference") and info.get("device") != "cpu"),
    )


def _json(url: str, key: str | None = None, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """A JSON object that a server may or may not offer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        reply = ask(url, timeout_s=ANSWER_S, headers=headers, body=body)
        content = reply.json() if reply.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class Reply(NamedTuple):
    """The reply to the first request, cut to one token: what is wrong with it, whether for good, and what it holds."""

    problem: str | None = None
    is_final: bool = False
    token_ids: str | None = None
    has_log_probs: bool = False


def ask_for_a_token(
    settings: EvalSettings, served: ServedModel, tokenizer: Any, eos_ids: Sequence[int], request: Request
) -> Reply:
    """Send a method's first request, with its own parameters, for one token."""
    from flashrag.generator.openai_completion import OpenAICompletionGenerator

    once = settings.model_copy(update={"generator_timeout_s": ANSWER_S, "generator_max_retries": 0})
    key = api_key("OPENAI_API_KEY") or "EMPTY"

    async def ask() -> Reply:
        generator = OpenAICompletionGenerator(once, served.name, tokenizer, eos_ids, key, served.limits)
        try:
            reply = await getattr(generator, request.route)(request.prompt, 1, *request.others, **request.named)
        finally:
            await generator.aclose()
        has_log_probs = getattr(reply, "tokens", None) is not None or not getattr(reply, "text", "")
        return Reply(token_ids=generator.token_id_origin, has_log_probs=has_log_probs)

    try:
        return asyncio.run(ask())
    except GenerationError as error:
        status = getattr(error.__cause__, "status_code", None)
        return Reply(str(error), is_final=status in REFUSALS and status not in PASSING)
