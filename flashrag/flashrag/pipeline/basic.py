"""What every pipeline shares: many questions at once, each scored, and a failed one recorded instead of fatal."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flashrag.config import validated
from flashrag.dataset import Question
from flashrag.episode import Outcome, check_chat_template
from flashrag.errors import UserError
from flashrag.metrics import AnswerScore, score_answer
from flashrag.pipeline.settings import PipelineSettings
from flashrag.pipeline.trace import ScoredSearch, Trace


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its outcome and score, or with the `failure` that left it without an outcome: an outage, a bug.

    A failed question has a score too: it counts as wrong, not as absent.
    """

    question: Question
    outcome: Outcome | None
    score: AnswerScore
    failure: str | None = None


class BasicPipeline(ABC):
    """Answers questions, `concurrency` of them at a time. A subclass says how one is answered.

    `retriever` is a `flashrag.client.RetrievalClient`, or a local retriever of `flashrag.utils.get_retriever`, which
    then searches in a thread. None stands for a retriever, or a generator, that the method does not need.
    """

    needs_retriever: ClassVar[bool] = True
    needs_generator: ClassVar[bool] = True

    def __init__(
        self,
        config: Mapping[str, Any] | PipelineSettings,
        retriever: ScoredSearch | None = None,
        generator: Any = None,
    ) -> None:
        is_settings = isinstance(config, PipelineSettings)
        self.settings = config if is_settings else validated(PipelineSettings, config, "config")
        for needed, given, name in (
            (self.needs_retriever, retriever, "retriever"),
            (self.needs_generator, generator, "generator"),
        ):
            if needed and given is None:
                raise UserError(f"{type(self).__name__} needs a {name}; see flashrag.utils.get_{name}")
        if generator is not None and generator.tokenizer is not None and self.settings.apply_chat:
            check_chat_template(generator.tokenizer)
        self.generator = generator
        self._retriever = retriever

    def prepare(self, questions: Sequence[Question]) -> None:  # noqa: B027 (most methods need nothing)
        """Look at the whole set once, before the first answer: all its questions, not only those left to answer."""

    @abstractmethod
    async def answer(self, question: Question) -> Outcome:
        """The outcome of one question; any number of them at once, on one event loop.

        Raises `SearchError` or `GenerationError` when a server gives no answer, and `ReSearchError` for what else
        makes a question unanswerable.
        """

    def trace(self) -> Trace:
        """A record for one question."""
        return Trace(self.settings, self.generator, self._retriever)

    async def run(
        self, questions: Sequence[Question], on_answered: Callable[[Answered], None] = lambda _: None
    ) -> list[Answered]:
        """Each question with its outcome, in their order; `on_answered` sees each one as soon as it is there."""
        self.prepare(questions)
        gate = asyncio.Semaphore(self.settings.concurrency)

        async def run_one(question: Question) -> Answered:
            async with gate:
                answered = await self._answered(question)
            on_answered(answered)
            return answered

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_one(question)) for question in questions]
        return [task.result() for task in tasks]

    async def _answered(self, question: Question) -> Answered:
        try:
            outcome = await self.answer(question)
        except Exception as error:  # the boundary between one question and the run: recorded with its reason
            failure = f"{type(error).__name__}: {error}"
            return Answered(question, None, score_answer("", question.golden_answers), failure)
        return Answered(question, outcome, score_answer(outcome.prediction, question.golden_answers))
