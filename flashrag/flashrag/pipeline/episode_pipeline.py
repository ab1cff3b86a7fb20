"""Methods that run one search episode per question: the model itself decides when to search.

Training runs the same episode (flashrag.episode). Does not cover: the dialects (flashrag.episode.dialect).
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from flashrag.dataset import Question
from flashrag.document import Passage
from flashrag.episode import (
    Dialect,
    EndReason,
    EpisodeCodec,
    Generation,
    Limits,
    Tool,
    ToolResult,
    Trajectory,
    run_episode,
)
from flashrag.errors import GenerationError, SearchError, UserError
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.settings import PipelineSettings
from flashrag.pipeline.trace import PromptTooLong, Trace


class Finding(NamedTuple):
    """The passages that one search found, and the text that the model had written before it searched."""

    reasoning: str
    query: str
    passages: tuple[Passage, ...]


class EpisodePipeline(BasicPipeline):
    """Runs one search episode per question, in the dialect of its models."""

    dialect: Dialect

    def __init__(
        self, config: Mapping[str, Any] | PipelineSettings, retriever: Any = None, generator: Any = None
    ) -> None:
        super().__init__(config, retriever, generator)
        if generator.tokenizer is None:
            raise UserError(
                f"{type(self).__name__} splices results into token ids, but the chat route returns no token ids; "
                "use framework: sgl_remote with a server that has the completion route"
            )
        self.tools = self.more_tools()
        self.dialect = self.dialect.with_calls(*(tool.tag for tool in self.tools))
        self.codec = EpisodeCodec(generator.tokenizer, generator.eos_token_ids, self.dialect)

    @abstractmethod
    def prompt_ids(self, question: str) -> list[int]:
        """The ids of the prompt of an episode."""

    def more_tools(self) -> tuple[Tool, ...]:
        """The tools besides search."""
        return ()

    async def read(self, finding: Finding, trace: Trace) -> ToolResult:  # noqa: ARG002 (for subclasses)
        """The result that the model reads: the passages themselves, unless a subclass overrides this."""
        return ToolResult(finding.passages)

    async def answer(self, question: Question) -> Trajectory:
        trace, prompt_ids = self.trace(question), self.prompt_ids(question.question)
        reasoning: list[str] = []

        async def generate(token_ids: list[int], max_tokens: int) -> Generation:
            generation = await self.generator.generate(token_ids, max_tokens, self.dialect)
            trace.count(len(token_ids), len(generation.token_ids))
            reasoning.append(self.codec.decode_sampled(generation.token_ids))
            return generation

        async def search(query: str) -> ToolResult:
            passages = await trace.find(query)
            return await self.read(Finding("".join(reasoning), query, passages), trace)

        limits = self._limits(len(prompt_ids))
        episode = await run_episode(prompt_ids, generate, search, self.codec, limits, tools=self.tools)
        if episode.end_reason is EndReason.SEARCH_FAILED:
            raise SearchError(f"search failed: {episode.calls[-1].error}")
        if episode.end_reason is EndReason.ABORTED:
            raise GenerationError("the model server aborted the request")
        return trace.of_episode(episode)

    def _limits(self, prompt_tokens: int) -> Limits:
        settings = self.settings
        room = settings.generator_max_input_len - prompt_tokens
        if room <= 0:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens, generator_max_input_len={settings.generator_max_input_len}"
            )
        return Limits(min(settings.max_response_tokens, room), settings.max_result_tokens, settings.max_searches)
