"""ReSearchPipeline: the model decides when to search, in the same episode that it was trained with."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from flashrag.dataset import Question
from flashrag.document import Document
from flashrag.episode import EndReason, EpisodeCodec, Generation, Limits, run_episode
from flashrag.errors import ReSearchError
from flashrag.pipeline.basic import Answer, BasicPipeline
from flashrag.pipeline.settings import PipelineSettings
from flashrag.prompt_ids import prompt_token_ids

Search = Callable[[str], Awaitable[Sequence[Document]]]


class Generator(Protocol):
    """The part of a generator that an episode needs (`flashrag.generator` has one)."""

    tokenizer: Any

    @property
    def eos_token_ids(self) -> Sequence[int]: ...

    async def generate(self, token_ids: Sequence[int], max_tokens: int) -> Generation: ...


class PromptTooLong(ReSearchError):
    """A prompt that leaves no room for a response in `generator_max_input_len`."""


class ReSearchPipeline(BasicPipeline):
    """Runs one search episode per question.

    `retriever` is a `flashrag.client.RetrievalClient`, or a local retriever of `flashrag.utils.get_retriever`, which
    then searches in a thread.
    """

    def __init__(self, config: Mapping[str, Any] | PipelineSettings, retriever: Any, generator: Generator) -> None:
        super().__init__(config)
        self.generator = generator
        self.codec = EpisodeCodec(generator.tokenizer, generator.eos_token_ids)
        self._search = _as_search(retriever, self.settings.retrieval_topk)
        self.prompt_ids("")  # a tokenizer without a chat template is refused here, not with each question

    def prompt_ids(self, question: str) -> list[int]:
        settings = self.settings
        return prompt_token_ids(self.generator.tokenizer, question, settings.prompt_template_name, settings.apply_chat)

    async def answer(self, question: Question) -> Answer:
        """The answer that one episode ends with; a search without an answer from the server is a failure."""
        settings = self.settings
        prompt_ids = self.prompt_ids(question.question)
        room = settings.generator_max_input_len - len(prompt_ids)
        if room <= 0:
            raise PromptTooLong(
                f"the prompt has {len(prompt_ids)} tokens, generator_max_input_len={settings.generator_max_input_len}"
            )
        limits = Limits(min(settings.max_response_tokens, room), settings.max_result_tokens, settings.max_searches)
        episode = await run_episode(prompt_ids, self.generator.generate, self._search, self.codec, limits)
        failure = None
        if episode.ended_by is EndReason.SEARCH_FAILED:
            failure = f"search failed: {episode.searches[-1].error}"
        elif episode.ended_by is EndReason.ABORTED:
            failure = "the model server aborted the request"
        return Answer(episode.answer, tuple(episode.searches), episode, failure)


def _as_search(retriever: Any, topk: int) -> Search:
    if inspect.iscoroutinefunction(retriever.search):
        return retriever.search

    async def search_in_thread(query: str) -> Sequence[Document]:
        return await asyncio.to_thread(retriever.search, query, topk)

    return search_in_thread
