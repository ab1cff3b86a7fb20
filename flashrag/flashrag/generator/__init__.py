"""Text generators: `generate(token_ids, max_tokens) -> Generation` for an episode, `complete` and `chat` for text.

    settings.py           the keys of a generator, checked at the start
    server.py             the model server: the models it serves, and the generator that uses it
    model_folder.py       the model's folder: its required files, its tokenizer, the tokens that end a sequence
    model_facts.py        what the model's files say: shapes, positions, parameters
    preflight.py          what can be wrong with such a folder, found without torch
    completion.py         one request: the server's reply, and when to try again
    openai_completion.py  the generator on any OpenAI-compatible server (SGLang, vLLM, …)

Importing this package is light.
"""

from flashrag.generator.completion import Completion, ScoredToken, with_retries
from flashrag.generator.model_facts import ModelFacts, read_model_facts
from flashrag.generator.model_folder import (
    check_model_folder,
    eos_token_ids,
    load_tokenizer,
    local_folder,
    read_json_object,
)
from flashrag.generator.preflight import MODEL_RULES, ModelFolder, can_be_trained, known_to_vllm
from flashrag.generator.server import load_generator
from flashrag.generator.settings import GeneratorSettings, SamplingSettings

__all__ = [
    "MODEL_RULES",
    "Completion",
    "GeneratorSettings",
    "ModelFacts",
    "ModelFolder",
    "SamplingSettings",
    "ScoredToken",
    "can_be_trained",
    "check_model_folder",
    "eos_token_ids",
    "known_to_vllm",
    "load_generator",
    "load_tokenizer",
    "local_folder",
    "read_json_object",
    "read_model_facts",
    "with_retries",
]
