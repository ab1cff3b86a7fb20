"""ReSearchPipeline: the model decides when to search, in the same episode that it was trained with.

Source: Chen et al., 2025, "ReSearch: Learning to Reason with Search for LLMs via Reinforcement Learning",
arXiv 2503.19470, and the pilot's published description.
"""

from collections.abc import Mapping
from typing import Any

from flashrag.episode import RESEARCH, Tool, prompt_token_ids
from flashrag.pipeline.episode_pipeline import EpisodePipeline
from flashrag.pipeline.settings import PipelineSettings
from flashrag.tools import PythonSandbox, check_sandbox, python_tool


class ReSearchPipeline(EpisodePipeline):
    """Thinks and searches in turn, then answers in a box."""

    dialect = RESEARCH

    def __init__(self, config: Mapping[str, Any] | PipelineSettings, retriever: Any, generator: Any) -> None:
        super().__init__(config, retriever, generator)
        self.prompt_ids("")  # raises now, not at every question, if the template cannot be used

    def more_tools(self) -> tuple[Tool, ...]:
        if not self.settings.python_tool:
            return ()
        check_sandbox()
        return (python_tool(PythonSandbox()),)

    def prompt_ids(self, question: str) -> list[int]:
        settings = self.settings
        return prompt_token_ids(self.generator.tokenizer, question, settings.prompt_template_name, settings.apply_chat)
