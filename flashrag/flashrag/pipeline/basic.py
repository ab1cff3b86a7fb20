"""What every pipeline shares: many questions at once, each scored; a failed one is recorded and stops no other."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from flashrag.config import validated
from flashrag.dataset import Question
from flashrag.episode import Failure, Trajectory, check_chat_template
from flashrag.errors import UserError
from flashrag.metrics import score_answer
from flashrag.pipeline.settings import PipelineSettings
from flashrag.pipeline.trace import ScoredSearch, Trace, failed_trajectory


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
    async def answer(self, question: Question) -> Trajectory:
        """The trajectory of one question; any number of them at once, on one event loop.

        Raises `SearchError` or `GenerationError` when a server gives no answer, and `ReSearchError` for what else
        makes a question unanswerable.
        """

    def trace(self, question: Question) -> Trace:
        """A record of the work on one question."""
        return Trace(question, self.settings, self.generator, self._retriever)

    async def run(self, questions: Sequence[Question]) -> list[Trajectory]:
        """Answer a whole set: each question's trajectory, in their order."""
        self.prepare(questions)
        answered: dict[str, Trajectory] = {}
        await self.answer_all(questions, lambda trajectory: answered.setdefault(trajectory.question_id, trajectory))
        return [answered[question.id] for question in questions]

    async def answer_all(self, questions: Sequence[Question], on_answered: Callable[[Trajectory], object]) -> None:
        """Answer questions of a set that was prepared; `on_answered` gets each trajectory as soon as it is there.

        A question that got no answer (an outage, a bug) has a trajectory with its error. What `on_answered` raises
        ends the run.
        """
        queue = iter(questions)

        async def work() -> None:
            for question in queue:  # all workers share the iterator: the next question goes to whoever is free
                on_answered(await self._answered(question))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(questions))):
                    group.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _answered(self, question: Question) -> Trajectory:
        try:
            trajectory = await self.answer(question)
        except Exception as error:  # the boundary between one question and the run: recorded with its reason
            trajectory = failed_trajectory(question, Failure(type(error).__name__, str(error)))
        scores = score_answer(trajectory.answer, trajectory.gold_answers)
        return replace(trajectory, metrics=scores._asdict())
