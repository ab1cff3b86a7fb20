"""Text generators: `generate(token_ids, max_tokens) -> Generation` for an episode, `complete` and `chat` for text.

    settings.py           the keys of a generator, checked at start
    server.py             is the model server there, what does it serve
    tokenizer.py          the tokenizer beside the model, and the tokens that end a sequence
    completion.py         what a server answers to a request for text
    retries.py            what is tried again, and the one error at the end
    openai_completion.py  any OpenAI-compatible server (SGLang, vLLM, …)

Importing this package is light; `flashrag.utils.get_generator` puts the parts together.
"""

from flashrag.generator.settings import GeneratorSettings, SamplingSettings

__all__ = ["GeneratorSettings", "SamplingSettings"]
