"""Methods that run one search episode per question: the model itself decides when to search.

Training runs the same episode (flashrag.episode). Does not cover: what the dialects are (flashrag.episode.dialect).
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flashrag.dataset import Question
from flashrag.document import Hit
from flashrag.episode import (
    Dialect,
    EndReason,
    Episode,
    EpisodeCodec,
    Generation,
    Limits,
    Outcome,
    Passage,
    Source,
    Step,
    StepKind,
    Tool,
    ToolResult,
    run_episode,
)
from flashrag.errors import GenerationError, SearchError, UserError
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.settings import PipelineSettings
from flashrag.pipeline.trace import PromptTooLong, ScoredSearch, Trace, as_passages


class Finding(NamedTuple):
    """What one search found, and what the model had written when it asked."""

    reasoning: str
    query: str
    hits: Sequence[Hit]


class EpisodePipeline(BasicPipeline):
    """Runs one search episode per question, in the dialect of its models."""

    dialect: Dialect

    def __init__(
        self,
        config: Mapping[str, Any] | PipelineSettings,
        retriever: ScoredSearch | None = None,
        generator: Any = None,
    ) -> None:
        super().__init__(config, retriever, generator)
        if generator.tokenizer is None:
            raise UserError(
                f"{type(self).__name__} splices results into token ids, which the chat route has not; "
                "use framework: sgl_remote with a server that has the completion route"
            )
        self.tools = self.more_tools()
        self.dialect = self.dialect.with_calls(*(tool.tag for tool in self.tools))
        self.codec = EpisodeCodec(generator.tokenizer, generator.eos_token_ids, self.dialect)

    @abstractmethod
    def prompt_ids(self, question: str) -> list[int]:
        """What the episode starts from."""

    @abstractmethod
    def prediction(self, episode: Episode) -> str:
        """The final answer, "" when the model gave none."""

    def more_tools(self) -> tuple[Tool, ...]:
        """The tools beside search."""
        return ()

    async def read(self, finding: Finding, trace: Trace) -> ToolResult:  # noqa: ARG002 (for subclasses)
        """What the model gets to see of a finding: the passages themselves, unless overridden."""
        return ToolResult.ranked(finding.hits)

    async def answer(self, question: Question) -> Outcome:
        trace, prompt_ids = self.trace(), self.prompt_ids(question.question)
        found: list[tuple[Passage, ...]] = []
        reasoning: list[str] = []

        async def generate(token_ids: list[int], max_tokens: int) -> Generation:
            generation = await self.generator.generate(token_ids, max_tokens, self.dialect)
            trace.count(len(token_ids), len(generation.token_ids))
            reasoning.append(self.codec.decode_sampled(generation.token_ids))
            return generation

        async def search(query: str) -> ToolResult:
            hits = await trace.find(query)
            found.append(as_passages(hits))
            return await self.read(Finding("".join(reasoning), query, hits), trace)

        limits = self._limits(len(prompt_ids))
        episode = await run_episode(prompt_ids, generate, search, self.codec, limits, tools=self.tools)
        if episode.ended_by is EndReason.SEARCH_FAILED:
            raise SearchError(f"search failed: {episode.searches[-1].error}")
        if episode.ended_by is EndReason.ABORTED:
            raise GenerationError("the model server aborted the request")
        trace.steps[:] = episode_steps(episode, self.dialect, found)
        return trace.outcome(self.prediction(episode), episode.ended_by, episode)

    def _limits(self, prompt_tokens: int) -> Limits:
        settings = self.settings
        room = settings.generator_max_input_len - prompt_tokens
        if room <= 0:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens, generator_max_input_len={settings.generator_max_input_len}"
            )
        return Limits(min(settings.max_response_tokens, room), settings.max_result_tokens, settings.max_searches)


def episode_steps(episode: Episode, dialect: Dialect, found: Sequence[tuple[Passage, ...]]) -> list[Step]:
    """The blocks that the model wrote and the results it got, in order; `found` are the passages of each search made.

    A result's text is what the model read, without its tags. The first results answer the recorded searches, in their
    order; what comes after them tells that the limit is reached.
    """
    steps: list[Step] = []
    passages, searches = iter(found), iter(episode.searches)
    for segment in episode.segments:
        if segment.source is Source.MODEL:
            steps += _written_steps(segment.text, dialect)
            continue
        search = next(searches, None)
        found_any = search is not None and search.tool == "search" and search.error is None
        made = next(passages) if found_any else ()
        body = segment.text.strip().removeprefix(dialect.result.open).removesuffix(dialect.result.close)
        steps.append(Step(StepKind.RESULT, body.strip(), made))
    return steps


def _written_steps(text: str, dialect: Dialect) -> Iterator[Step]:
    """The blocks of one sampled text; a block left open ends where the next begins. What is in none is generation."""
    kinds = {dialect.think.open: StepKind.THINK, **{tag.open: StepKind.QUERY for tag in dialect.calls}}
    opened = "|".join(map(re.escape, kinds))
    closed = "|".join(re.escape(tag.close) for tag in (dialect.think, *dialect.calls))
    position = 0
    for block in re.finditer(f"({opened})(.*?)(?:{closed}|(?={opened})|$)", text, re.DOTALL):
        if loose := text[position : block.start()].strip():
            yield Step(StepKind.GENERATION, loose)
        yield Step(kinds[block[1]], block[2].strip())
        position = block.end()
    if loose := text[position:].strip():
        yield Step(StepKind.GENERATION, loose)
