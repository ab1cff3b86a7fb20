"""Methods whose model decides when to search: ReSearch, Search-o1 and Search-R1, one search episode per question.

Training runs the same episode (flashrag.episode). Does not cover: the dialects (flashrag.episode.dialect).

Sources: Chen et al., 2025, "ReSearch: Learning to Reason with Search for LLMs via Reinforcement Learning", arXiv
2503.19470, and the pilot's published description; Li et al., 2025, "Search-o1: Agentic Search-Enhanced Large Reasoning
Models", arXiv 2501.05366; Jin et al., 2025, "Search-R1: Training LLMs to Reason and Leverage Search Engines with
Reinforcement Learning", arXiv 2503.09516, and the project's inference script.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flashrag.client import forced_query
from flashrag.dataset import Question
from flashrag.document import Document, Passage
from flashrag.episode import (
    RESEARCH,
    SEARCH_O1,
    SEARCH_R1,
    Dialect,
    EndReason,
    EpisodeCodec,
    Generation,
    Limits,
    Tool,
    ToolResult,
    Trajectory,
    encode_prompt,
    prompt_token_ids,
    run_episode,
)
from flashrag.errors import GenerationError, SearchError, UserError
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.settings import PipelineSettings
from flashrag.pipeline.trace import PromptTooLong, Trace
from flashrag.prompts import SEARCH_R1_TEMPLATE
from flashrag.tools import PythonSandbox, check_sandbox, python_tool

FINAL_INFORMATION = "**Final Information**"  # what the summary of a search starts with
NOTHING_HELPFUL = "No helpful information found."
MAX_REASONING_CHARS = 8000  # counted from the end, which tells most about the current query


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
        self.prompt_ids("")  # raises now, not at every question, if the prompt cannot be made

    def prompt_ids(self, question: str) -> list[int]:
        """The ids of the prompt of an episode."""
        assert self.prompt is not None, "an episode has a prompt"
        return prompt_token_ids(self.generator.tokenizer, question, self.prompt, self.settings.apply_chat)

    def trace(self, question: Question) -> Trace:
        """Without a watcher: the episode has its own."""
        return Trace(question, self.settings, self.generator, self._retriever)

    def more_tools(self) -> tuple[Tool, ...]:
        """The tools besides search."""
        return ()

    async def read(self, finding: Finding, trace: Trace) -> ToolResult:  # noqa: ARG002 (for subclasses)
        """The result that the model reads: the passages themselves, unless a subclass overrides this."""
        return ToolResult(finding.passages)

    async def answer(self, question: Question) -> Trajectory:
        trace, prompt_ids = self.trace(question), self.prompt_ids(question.question)
        reasoning: list[str] = []
        streamed = {"watcher": self.watcher} if self.watcher is not None else {}

        async def generate(token_ids: list[int], max_tokens: int) -> Generation:
            generation = await self.generator.generate(token_ids, max_tokens, self.dialect, **streamed)
            trace.count(len(token_ids), len(generation.token_ids))
            reasoning.append(self.codec.decode_sampled(generation.token_ids))
            return generation

        async def search(query: str) -> ToolResult:
            passages = await trace.find(query)
            return await self.read(Finding("".join(reasoning), query, passages), trace)

        limits = self._limits(len(prompt_ids))
        episode = await run_episode(
            prompt_ids,
            generate,
            search,
            self.codec,
            limits,
            tools=self.tools,
            watcher=self.watcher,
            forced_query=forced_query(self._retriever, question.question),
        )
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
        return Limits(
            min(settings.max_response_tokens, room),
            settings.max_result_tokens,
            settings.max_searches,
            tell_budget=settings.tell_budget,
        )


class ReSearchPipeline(EpisodePipeline):
    """Thinks and searches in turn, then answers in a box, in the same episode that the model was trained with."""

    dialect = RESEARCH

    def more_tools(self) -> tuple[Tool, ...]:
        if not self.settings.python_tool:
            return ()
        check_sandbox()
        return (python_tool(PythonSandbox()),)

    @classmethod
    def prompt_name(cls, settings: PipelineSettings) -> str:
        return settings.prompt_template_name


class SearchO1Pipeline(EpisodePipeline):
    """Agentic search by an instruct model that was never trained to search, in Search-o1's tags.

    A separate request to the same model reads the passages of a search (Reason-in-Documents), and only its summary
    enters the chain. Here, passages take the place of the paper's web pages.
    """

    dialect = SEARCH_O1
    own_prompt = "search_o1"

    def prompt_ids(self, question: str) -> list[int]:
        prompt = self.template.fill(question=question, max_searches=str(self.settings.max_searches))
        return encode_prompt(self.generator.tokenizer, prompt, self.settings.apply_chat)

    async def read(self, finding: Finding, trace: Trace) -> ToolResult:
        reading = self.template.with_passages
        assert reading is not None, "the file of a prompt was compared with our own"
        prompt = reading.fill(finding.passages, reasoning=finding.reasoning[-MAX_REASONING_CHARS:], query=finding.query)
        completion = await trace.generate(prompt, max_tokens=self.settings.max_result_tokens)
        information = completion.text.rpartition(FINAL_INFORMATION)[2].strip()
        return ToolResult(finding.passages, (Document("reason-in-documents", information or NOTHING_HELPFUL),))


class SearchR1Pipeline(EpisodePipeline):
    """Runs Search-R1's models in the way of their authors; the answer is the whole answer block.

    Like their inference script, and unlike their training loop, this does not ask again after a turn without search and
    answer. The models were trained with three passages per search.
    """

    dialect = SEARCH_R1
    own_prompt = SEARCH_R1_TEMPLATE
