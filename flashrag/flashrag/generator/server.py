"""A model server as a generator. Before anything heavy is loaded, the server is asked once for the models it serves."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from flashrag.errors import UserError
from flashrag.generator.model_facts import language_config
from flashrag.generator.model_folder import KEY, check_model_path, eos_token_ids, load_tokenizer, read_json_object
from flashrag.generator.settings import Framework, GeneratorSettings
from flashrag.system.network import ask, detour

if TYPE_CHECKING:
    from flashrag.generator.openai_completion import OpenAICompletionGenerator

# SGLang refuses prompts that leave fewer tokens of its context than this, and ends a reply before its last two.
SGLANG_RESERVED_TOKENS = 6
# The largest values that an engine takes, where another takes more; by its name in `owned_by`.
MOST = {"sglang": {"repetition_penalty": 2.0}, "vllm": {"temperature": 2.0}}
_REMEDY = (
    "start one with: python3 -m sglang.launch_server --model-path MODEL --port P, "
    "or: python -m vllm.entrypoints.openai.api_server --model MODEL --port P"
)


class ServerLimits(NamedTuple):
    """What a server takes; None where it does not say.

    `max_tokens` is for prompt and response together; `vocabulary` is the number of tokens that the model knows.
    """

    max_tokens: int | None = None
    vocabulary: int | None = None


NO_LIMITS = ServerLimits()


def api_key(*variables: str) -> str | None:
    """The key in the first of these variables that is set; raises `UserError` for one that no request can carry."""
    name = next((name for name in variables if os.environ.get(name)), None)
    if name is not None and not re.fullmatch(r"[\x21-\x7e]+", os.environ[name]):
        raise UserError(f"{name} holds a space, a line break or a character that is not ASCII; set it again")
    return os.environ[name] if name else None


def load_generator(settings: GeneratorSettings) -> OpenAICompletionGenerator:
    """The generator of a configuration. Raises `UserError` for a missing server, model folder or tokenizer.

    The server's key comes from OPENAI_API_KEY, never from a flag or a file.
    """
    key = api_key("OPENAI_API_KEY") or "EMPTY"
    with_tokenizer = settings.framework is not Framework.OPENAI_CHAT
    if with_tokenizer:
        check_model_path(settings.generator_model)
    card = find_served_card(settings, key)
    tokenizer = load_tokenizer(settings.generator_model) if with_tokenizer else None
    eos_ids = eos_token_ids(tokenizer, settings.generator_model) if with_tokenizer else []
    from flashrag.generator.openai_completion import OpenAICompletionGenerator

    limits = server_limits(card, settings.generator_model)
    return OpenAICompletionGenerator(settings, str(card["id"]), tokenizer, eos_ids, key, limits)


def is_sglang(card: Mapping[str, Any]) -> bool:
    """Whether the server that lists a model is SGLang."""
    return card.get("owned_by") == "sglang"


def server_limits(card: Mapping[str, Any], generator_model: str) -> ServerLimits:
    """The limits of the server that lists a model as `card`; the vocabulary is that of the folder it names, if that
    lies on this machine, else that of `generator_model`.
    """
    context = card.get("max_model_len")
    reserved = SGLANG_RESERVED_TOKENS if is_sglang(card) else 0
    folders = [Path(str(place)) for place in (card.get("root"), card["id"], generator_model) if place]
    # A folder of the server's user may be closed to this one.
    folder = next((folder for folder in folders if os.access(folder / "config.json", os.R_OK)), None)
    vocabulary = folder and language_config(read_json_object(folder / "config.json", KEY)).get("vocab_size")
    return ServerLimits(
        context - reserved if isinstance(context, int) else None, vocabulary if isinstance(vocabulary, int) else None
    )


def find_served_card(settings: GeneratorSettings, api_key: str) -> dict[str, Any]:
    """What the server at `sgl_remote_url` lists of `generator_model`; its `id` is the name that requests give.

    A server with a single model serves that one under any name, because published set-ups name it freely. Raises
    `UserError` when no server answers, when several models are served under other names, when the server's context is
    shorter than `generator_max_input_len`, or when it takes no such `generation_params`.
    """
    cards = _model_cards(settings, api_key)
    card = _matching_card(cards, settings.generator_model)
    if card is None:
        names = ", ".join(str(card.get("id")) for card in cards) or "none"
        raise UserError(
            f"the server at sgl_remote_url={settings.sgl_remote_url} serves these models: {names}; "
            f"generator_model={settings.generator_model!r} names none of them"
        )
    max_tokens = card.get("max_model_len")
    if isinstance(max_tokens, int) and max_tokens < settings.generator_max_input_len:
        raise UserError(
            f"generator_max_input_len={settings.generator_max_input_len}, but the server at {settings.sgl_remote_url} "
            f"takes {max_tokens} tokens; lower generator_max_input_len or serve the model with a longer context"
        )
    engine = str(card.get("owned_by"))
    for name, most in MOST.get(engine, {}).items():
        if (value := getattr(settings.generation_params, name)) > most:
            raise UserError(
                f"generation_params.{name}={value:g}, but {engine}, which serves the model at "
                f"{settings.sgl_remote_url}, takes at most {most:g}; lower it"
            )
    return card


def _model_cards(settings: GeneratorSettings, api_key: str) -> list[dict[str, Any]]:
    url = f"{settings.api_base_url}/models"
    try:
        response = ask(url, timeout_s=5.0, headers={"Authorization": f"Bearer {api_key}"})
    except httpx.TransportError as error:
        raise UserError(
            f"no model server answers at sgl_remote_url={settings.sgl_remote_url} ({error}){detour(url)}; {_REMEDY}"
        ) from error
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise UserError(f"{url} answered {response.status_code}; put the server's key into OPENAI_API_KEY{detour(url)}")
    try:
        cards = response.raise_for_status().json()["data"]
        return [card for card in cards if card["id"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{url} answered {response.status_code} {response.text[:100]!r}; "
            f"sgl_remote_url must be an OpenAI-compatible model server{detour(url)}; {_REMEDY}"
        ) from error


def _matching_card(cards: list[dict[str, Any]], generator_model: str) -> dict[str, Any] | None:
    if len(cards) == 1:
        return cards[0]
    names = {generator_model, Path(generator_model).name}
    return next((card for card in cards if names & {card["id"], card.get("root")}), None)
