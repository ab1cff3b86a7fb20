"""Runs Search-R1's models in the way of their authors: their prompt, their tags, their stops.

Source: Jin et al., 2025, "Search-R1: Training LLMs to Reason and Leverage Search Engines with Reinforcement Learning",
arXiv 2503.09516, and the project's inference script. Like that script, and unlike the project's training loop, this
does not ask again after a turn without search and answer. The models were trained with three passages per search.
"""

from collections.abc import Mapping
from typing import Any

from flashrag.episode import SEARCH_R1, encode_prompt
from flashrag.errors import UserError
from flashrag.pipeline.episode_pipeline import EpisodePipeline
from flashrag.pipeline.settings import PipelineSettings
from flashrag.prompts import SEARCH_R1_PROMPT


class SearchR1Pipeline(EpisodePipeline):
    """Runs one episode in Search-R1's tags; the answer is the whole answer block."""

    dialect = SEARCH_R1

    def __init__(
        self, config: Mapping[str, Any] | PipelineSettings, retriever: Any = None, generator: Any = None
    ) -> None:
        super().__init__(config, retriever, generator)
        if generator.tokenizer.chat_template and not self.settings.apply_chat:
            raise UserError(
                "the models of search-r1, also base models, were trained with a chat template if they have one, "
                "and this tokenizer has one; use apply_chat: true"
            )

    def prompt_ids(self, question: str) -> list[int]:
        question = question.strip()
        question = question if question.endswith("?") else f"{question}?"
        prompt = SEARCH_R1_PROMPT.fill(question=question)
        return encode_prompt(self.generator.tokenizer, prompt, self.settings.apply_chat)
