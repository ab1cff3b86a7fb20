"""Putting a generator together; what is cheap to check is checked before anything heavy is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flashrag.generator.server import find_served_model
from flashrag.generator.settings import Framework, GeneratorSettings
from flashrag.generator.tokenizer import check_model_path, eos_token_ids, load_tokenizer

if TYPE_CHECKING:
    from flashrag.generator.openai_completion import OpenAICompletionGenerator


def load_generator(settings: GeneratorSettings) -> OpenAICompletionGenerator:
    """The generator of a configuration. Raises `UserError` for a missing server, model folder or tokenizer.

    The server's key comes from OPENAI_API_KEY, never from a flag or a file.
    """
    api_key = os.environ.get("OPENAI_API_KEY") or "EMPTY"
    if settings.framework is Framework.OPENAI_CHAT:
        served = find_served_model(settings, api_key)
        from flashrag.generator.openai_completion import OpenAICompletionGenerator

        return OpenAICompletionGenerator(settings, served.name, None, (), api_key)
    check_model_path(settings.generator_model)
    served = find_served_model(settings, api_key)
    tokenizer = load_tokenizer(settings.generator_model)
    from flashrag.generator.openai_completion import OpenAICompletionGenerator

    eos_ids = eos_token_ids(tokenizer, settings.generator_model)
    return OpenAICompletionGenerator(settings, served.name, tokenizer, eos_ids, api_key)
