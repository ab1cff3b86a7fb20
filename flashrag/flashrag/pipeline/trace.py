"""The record of one question while it is answered: every request goes through it, and leaves a step and its cost."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from flashrag.document import Document, Hit
from flashrag.episode import (
    MAX_QUERY_CHARS,
    Episode,
    Outcome,
    Passage,
    Step,
    StepKind,
    Usage,
    encode_prompt,
    neutralize,
)
from flashrag.errors import ReSearchError
from flashrag.generator import Completion
from flashrag.pipeline.settings import PipelineSettings
from flashrag.prompts import Prompt

# Room that passages leave for what is written after them: enough for a sentence or a short answer.
_ROOM_TOKENS = 256


class PromptTooLong(ReSearchError):
    """A prompt that leaves no room for a response in `generator_max_input_len`."""


class ScoredSearch(Protocol):
    """What a pipeline searches with: the retrieval client, or a retriever in this process."""

    async def search_scored(self, query: str, top_n: int) -> Sequence[Hit]:
        """The best `top_n` documents with their scores, best first. Raises `SearchError`."""
        ...


class Trace:
    """One question's requests; not shared between questions."""

    def __init__(self, settings: PipelineSettings, generator: Any, retriever: ScoredSearch | None):
        self.steps: list[Step] = []
        self._settings = settings
        self._generator = generator
        self._retriever = retriever
        self._started = time.perf_counter()
        self._prompt_tokens = self._completion_tokens = self._generator_calls = self._searches = 0

    async def generate(
        self, prompt: Prompt, *, stop: Sequence[str] = (), max_tokens: int | None = None, log_probs: bool = False
    ) -> Completion:
        """The text that continues a prompt; passages that do not fit are dropped, the last ones first."""
        wanted = min(max_tokens or self._settings.max_response_tokens, self._settings.max_response_tokens)
        ids: list[int] = []
        if self._generator.tokenizer is None:
            written = [{"role": "assistant", "content": prompt.written}] if prompt.written else []
            completion = await self._generator.chat([*prompt.messages, *written], wanted, stop, log_probs=log_probs)
        else:
            ids = self._fitted_ids(prompt, wanted)
            room = self._settings.generator_max_input_len - len(ids)
            completion = await self._generator.complete(ids, min(wanted, room), stop, log_probs=log_probs)
        self.count(completion.prompt_tokens or len(ids), completion.completion_tokens)
        self.add(StepKind.GENERATION, completion.text)
        return completion

    async def search(self, query: str) -> tuple[Document, ...]:
        """The documents for a query, which becomes a step, as its passages do. Raises `SearchError`."""
        query = query[:MAX_QUERY_CHARS]
        self.add(StepKind.QUERY, query)
        hits = await self.find(query)
        self.add(StepKind.RESULT, "", as_passages(hits))
        return tuple(hit.document for hit in hits)

    async def find(self, query: str) -> Sequence[Hit]:
        """The hits for a query: counted, but left out of the steps. Raises `SearchError`."""
        assert self._retriever is not None, "a pipeline that searches has a retriever"
        self._searches += 1
        return await self._retriever.search_scored(query, self._settings.retrieval_topk)

    def add(self, kind: StepKind, text: str, passages: tuple[Passage, ...] = ()) -> None:
        self.steps.append(Step(kind, text, passages))

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Add one call of the generator to the cost."""
        self._generator_calls += 1
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens

    def outcome(self, prediction: str, end_reason: str, episode: Episode | None = None) -> Outcome:
        """What came of it; the answer is the last step."""
        self.add(StepKind.ANSWER, prediction)
        usage = Usage(
            self._prompt_tokens,
            self._completion_tokens,
            self._generator_calls,
            self._searches,
            time.perf_counter() - self._started,
        )
        return Outcome(prediction, end_reason, tuple(self.steps), usage, episode)

    def _fitted_ids(self, prompt: Prompt, wanted_tokens: int) -> list[int]:
        """The ids of the prompt with as many passages as leave room for a short answer."""
        tokenizer, limit = self._generator.tokenizer, self._settings.generator_max_input_len
        reserve = min(wanted_tokens, _ROOM_TOKENS, limit // 4)
        specials = tuple(tokenizer.all_special_tokens)
        documents = tuple(Document(d.id, neutralize(d.contents, specials)) for d in prompt.documents)
        ids: list[int] = []
        for count in range(len(documents), -1, -1):
            ids = encode_prompt(tokenizer, prompt.with_documents(documents[:count]), self._settings.apply_chat)
            if len(ids) + reserve <= limit:
                return ids
        raise PromptTooLong(
            f"the prompt has {len(ids)} tokens without any passage, generator_max_input_len={limit}; "
            "raise it, or shorten the question"
        )


def as_passages(hits: Iterable[Hit]) -> tuple[Passage, ...]:
    """Hits in the shape in which a step keeps them."""
    return tuple(Passage(document.id, document.contents, score) for document, score in hits)
