"""The trace of one question: every request for it goes through the trace, which records it for the trajectory."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from flashrag.client import for_one_question
from flashrag.dataset import Question
from flashrag.document import Hit, Passage
from flashrag.episode import (
    FAILED,
    MAX_QUERY_CHARS,
    EndReason,
    Episode,
    Failure,
    Segment,
    Source,
    ToolCall,
    Trajectory,
    Usage,
    Watcher,
    encode_prompt,
)
from flashrag.errors import ReSearchError
from flashrag.generator import Completion
from flashrag.metrics import supporting_documents
from flashrag.pipeline.settings import PipelineSettings
from flashrag.prompts import Prompt

Passages = tuple[Passage, ...]

# Tokens that passages must leave free for the response: enough for a sentence or a short answer.
_ROOM_TOKENS = 256
SHORT_ANSWER_TOKENS = 128
MAX_BLANK_LINES = 4  # before a reply
_PASSAGES = frozenset({"context", "paragraphs"})
# What a server says of a reply that the model did not end: OpenAI's words, vLLM's for text that repeats itself.
_END_REASONS = {
    **dict.fromkeys(("length", "content_filter", "repetition"), EndReason.LENGTH),
    "abort": EndReason.ABORTED,
}


class PromptTooLong(ReSearchError):
    """A prompt leaves no room for a response in `generator_max_input_len`."""


class ScoredSearch(Protocol):
    """The retrieval client, or a retriever in this process."""

    async def search_scored(self, query: str, top_n: int) -> Sequence[Hit]:
        """The best `top_n` documents with their scores, best first. Raises `SearchError`."""
        ...


class Trace:
    """One question's requests; not shared between questions."""

    def __init__(
        self,
        question: Question,
        settings: PipelineSettings,
        generator: Any,
        retriever: ScoredSearch | None,
        watcher: Watcher | None = None,
    ):
        self._question = question
        self._settings = settings
        self._generator = generator
        self._retriever = for_one_question(retriever)
        self._watcher = watcher
        self._started = time.perf_counter()
        self._segments: list[Segment] = []
        self._calls: list[ToolCall] = []
        self._prompt_tokens = self._completion_tokens = self._generator_calls = self._searches = 0

    async def generate(
        self, prompt: Prompt, *, stop: Sequence[str] = (), max_tokens: int | None = None, log_probs: bool = False
    ) -> Completion:
        """The text that continues a prompt; passages that do not fit are dropped, from the last on."""
        wanted = min(max_tokens or self._settings.max_response_tokens, self._settings.max_response_tokens)
        if self._generator.tokenizer is None:
            written = [{"role": "assistant", "content": prompt.written}] if prompt.written else []
            completion = await self._generator.chat([*prompt.messages, *written], wanted, stop, log_probs=log_probs)
            self.count(completion.prompt_tokens, completion.completion_tokens)
        else:
            completion = await self._complete(self._fitted_ids(prompt, wanted), wanted, stop, log_probs)
        self._add(Segment(Source.MODEL, completion.text))
        return completion

    async def _complete(self, ids: list[int], wanted: int, stop: Sequence[str], log_probs: bool) -> Completion:
        """The text that continues a prompt's ids. Where it ends with a line, this is the first that is not blank.

        An instruct model that gets a plain prompt often begins with an empty line, at which the server stops.
        """
        tokenizer, limit = self._generator.tokenizer, self._settings.generator_max_input_len
        for blank_lines_left in reversed(range(MAX_BLANK_LINES + 1)):
            room = max(0, limit - len(ids))
            completion: Completion = await self._generator.complete(ids, min(wanted, room), stop, log_probs=log_probs)
            self.count(completion.prompt_tokens or len(ids), completion.completion_tokens)
            line = completion.text + (completion.stop or "")
            if not completion.stop or line.strip() or not blank_lines_left:
                break
            ids = [*ids, *tokenizer.encode(line, add_special_tokens=False)]
        return completion

    async def ask(self, prompt: Prompt) -> tuple[str, EndReason]:
        """The reply to a prompt that asks for the answer alone, and the reason why it ended.

        A base model may not stop by itself; an instruct model does, and may think first.
        """
        max_tokens = None if self._settings.apply_chat else SHORT_ANSWER_TOKENS
        completion = await self.generate(prompt, stop=self._settings.answer_stops, max_tokens=max_tokens)
        return completion.text.strip(), end_reason_of(completion.finish_reason)

    async def search(
        self, query: str, count: int | None = None, choose: Callable[[Passages], Passages] = tuple
    ) -> Passages:
        """The passages for a query, or those that are chosen of `count`. Raises `SearchError`."""
        query, started = query[:MAX_QUERY_CHARS], time.perf_counter()
        passages = choose(await self.find(query, count))
        self.give(passages, query, time.perf_counter() - started)
        return passages

    async def find(self, query: str, count: int | None = None) -> Passages:
        """`search` without recording the call, because an episode records its own. Raises `SearchError`."""
        assert self._retriever is not None, "a pipeline that searches has a retriever"
        self._searches += 1
        hits = await self._retriever.search_scored(query, count or self._settings.retrieval_topk)
        return tuple(map(Passage.of, hits))

    def give(self, passages: Passages, query: str = "", latency_s: float = 0.0) -> None:
        """Record passages that the model is given; `query` is empty if no search found them."""
        self._calls.append(ToolCall(query, passages, latency_s))
        self._add(Segment(Source.RESULT, "", call=len(self._calls) - 1))

    def _add(self, segment: Segment) -> None:
        self._segments.append(segment)
        if self._watcher is not None:
            self._watcher.ends(segment, None if segment.call is None else self._calls[segment.call])

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Add one request to the generator to the cost."""
        self._generator_calls += 1
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens

    def of_text(self, answer: str, end_reason: str) -> Trajectory:
        """The trajectory of a question, by a method that works on text."""
        recorded = {"segments": tuple(self._segments), "calls": tuple(self._calls), "usage": self._usage()}
        return Trajectory(answer=answer, end_reason=end_reason, **asked(self._question), **recorded)

    def of_episode(self, episode: Episode) -> Trajectory:
        """The trajectory of a question, by a method that runs an episode."""
        usage = self._usage(episode.count_tokens(sampled=False))
        return Trajectory.of_episode(episode, usage=usage, **asked(self._question))

    def _usage(self, result_tokens: int = 0) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            result_tokens=result_tokens,
            generator_calls=self._generator_calls,
            searches=self._searches,
            latency_s=time.perf_counter() - self._started,
        )

    def _fitted_ids(self, prompt: Prompt, wanted_tokens: int) -> list[int]:
        """The ids of the prompt, with as many of the first passages as still leave room for a short answer."""
        tokenizer, limit = self._generator.tokenizer, self._settings.generator_max_input_len
        reserve = min(wanted_tokens, _ROOM_TOKENS, limit // 4)
        ids: list[int] = []
        for count in range(len(prompt.documents), -1, -1):
            shorter = replace(prompt, documents=prompt.documents[:count])
            ids = encode_prompt(tokenizer, shorter, self._settings.apply_chat)
            if len(ids) + reserve <= limit:
                return ids
        raise PromptTooLong(
            f"the prompt has {len(ids)} tokens without any passage, generator_max_input_len={limit}; "
            "raise it, or shorten the question"
        )


def asked(question: Question) -> dict[str, Any]:
    """The fields of a trajectory that its question determines."""
    return {
        "question_id": question.id,
        "question": question.question,
        "gold_answers": question.golden_answers,
        "metadata": _without_passages(question.metadata),
    }


def failed_trajectory(question: Question, failure: Failure, attempt: int = 1) -> Trajectory:
    """The trajectory of a question that failed."""
    return Trajectory(end_reason=FAILED, error=failure, attempt=attempt, **asked(question))


def end_reason_of(finish_reason: str | None) -> EndReason:
    """The end reason of an episode that matches the finish reason of a completion."""
    return _END_REASONS.get(finish_reason or "", EndReason.EOS)


def _without_passages(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata without the data set's own passages, which would bloat a trajectory; their titles stay."""
    kept = {key: value for key, value in metadata.items() if key not in _PASSAGES}
    support = supporting_documents(metadata)
    if support is not None and support[0] == "title":
        kept["supporting_titles"] = sorted(support[1])
    return kept
