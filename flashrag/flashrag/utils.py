"""FlashRAG's public factories; each imports the modules that it needs only when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashrag.config import Config
    from flashrag.dataset import Question
    from flashrag.generator.openai_completion import OpenAICompletionGenerator
    from flashrag.retriever import Retriever


def get_retriever(config: Config) -> Retriever:
    """The retriever that `retrieval_method` names (see flashrag.retriever), loaded and checked."""
    from flashrag.retriever import load_retriever

    return load_retriever(config)


def get_generator(config: Config) -> OpenAICompletionGenerator:
    """A generator on the model server at `sgl_remote_url`; the server and the tokenizer are checked first."""
    from flashrag.config import validated
    from flashrag.generator import GeneratorSettings, load_generator

    return load_generator(validated(GeneratorSettings, config, "config"))


def get_dataset(config: Config) -> dict[str, list[Question]]:
    """The questions of each split that `split` names (one name or a list), by the name of the split."""
    from flashrag.config import validated
    from flashrag.dataset import DatasetSettings, load_questions
    from flashrag.errors import UserError

    splits = [config["split"]] if isinstance(config["split"], str) else config["split"]
    if not splits or not all(isinstance(split, str) for split in splits):
        raise UserError(f"split={config['split']!r}; expected the name of a split, e.g. dev, or a list of them")
    settings = validated(DatasetSettings, config, "config")
    return {split: load_questions(settings, split) for split in splits}
