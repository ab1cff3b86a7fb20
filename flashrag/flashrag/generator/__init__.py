"""Text generators behind one call: `generate(token_ids, max_tokens) -> Generation`, as `flashrag.episode` wants it.

    settings.py           the keys of a generator, checked at start
    server.py             is the model server there, what does it serve
    tokenizer.py          the tokenizer beside the model, and the tokens that end a sequence
    openai_completion.py  any OpenAI-compatible completion server (SGLang, vLLM)

Importing this package is light; `flashrag.utils.get_generator` puts the parts together.
"""

from flashrag.generator.settings import GeneratorSettings, SamplingSettings

__all__ = ["GeneratorSettings", "SamplingSettings"]
