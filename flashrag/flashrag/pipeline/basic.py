"""The base of every pipeline: answers many questions at once and scores each; a failed one does not stop others."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

from flashrag.config import validated
from flashrag.dataset import Question
from flashrag.episode import Failure, Trajectory, Watcher, prompt_note
from flashrag.errors import UserError
from flashrag.metrics import score_answer
from flashrag.pipeline.settings import PipelineSettings
from flashrag.pipeline.trace import ScoredSearch, Trace, failed_trajectory
from flashrag.prompts import ChosenPrompt, PromptTemplate, choose_prompt


class BasicPipeline(ABC):
    """Answers questions, `concurrency` of them at a time. A subclass defines how one question is answered.

    `retriever` is a `flashrag.client.RetrievalClient`, or a local retriever of `flashrag.utils.get_retriever`, which
    then searches in a thread. `retriever` or `generator` may be None if the method does not need it.
    """

    needs_retriever: ClassVar[bool] = True
    needs_generator: ClassVar[bool] = True
    own_prompt: ClassVar[str | None] = None  # the name of its prompt in our own words; None if it asks no model
    watcher: Watcher | None = None  # of the one question that `answer_watched` asks

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
            prompt_note(generator.tokenizer, apply_chat=True)  # raises now, not at every question
        self.generator = generator
        self._retriever = retriever
        self.prompt = self.chosen_prompt(self.settings)

    @classmethod
    def prompt_name(cls, settings: PipelineSettings) -> str | None:  # noqa: ARG003 (for subclasses)
        return cls.own_prompt

    @classmethod
    def chosen_prompt(cls, settings: PipelineSettings) -> ChosenPrompt | None:
        """The method's prompt, None if it asks no model; raises `UserError` for a file that does not fit."""
        name = cls.prompt_name(settings)
        return choose_prompt(name, settings.prompt_file) if name else None

    @property
    def template(self) -> PromptTemplate:
        assert self.prompt is not None, "a method that asks a model has a prompt"
        return self.prompt.template

    def prepare(self, questions: Sequence[Question]) -> None:  # noqa: B027 (most methods need nothing)
        """Read the whole set once before the first answer, including questions that are answered already."""

    @abstractmethod
    async def answer(self, question: Question) -> Trajectory:
        """The trajectory of one question; any number of calls may run at once, on one event loop.

        Raises `SearchError` or `GenerationError` if a server gives no answer, and `ReSearchError` if the question
        cannot be answered for another reason.
        """

    def trace(self, question: Question) -> Trace:
        """A record of the work on one question."""
        return Trace(question, self.settings, self.generator, self._retriever, self.watcher)

    async def run(self, questions: Sequence[Question]) -> list[Trajectory]:
        """Answer a whole set; returns the trajectories in the order of the questions."""
        self.prepare(questions)
        answered: dict[str, Trajectory] = {}
        await self.answer_all(questions, lambda trajectory: answered.setdefault(trajectory.question_id, trajectory))
        return [answered[question.id] for question in questions]

    async def answer_all(self, questions: Sequence[Question], on_answered: Callable[[Trajectory], object]) -> None:
        """Answer questions of a prepared set; `on_answered` gets each trajectory as soon as it exists.

        The trajectory of a question that failed (an outage, a bug) holds the error. An exception of `on_answered` ends
        the run.
        """
        queue = iter(questions)

        async def work() -> None:
            for question in queue:  # all workers share the iterator, so the next free one takes the next question
                on_answered(await self._answered(question))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(questions))):
                    group.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def answer_watched(self, question: Question, watcher: Watcher) -> Trajectory:
        """The trajectory of one question, whose answering `watcher` sees; one of a failed question holds the error."""
        alone = copy(self)
        alone.watcher = watcher
        return await alone._answered(question)

    async def _answered(self, question: Question) -> Trajectory:
        try:
            trajectory = await self.answer(question)
        except Exception as error:  # a failed question is recorded with its reason, and the run goes on
            trajectory = failed_trajectory(question, Failure(type(error).__name__, str(error)))
        if not trajectory.gold_answers:
            return trajectory
        scores = score_answer(trajectory.answer, trajectory.gold_answers)
        return replace(trajectory, metrics=scores._asdict())
