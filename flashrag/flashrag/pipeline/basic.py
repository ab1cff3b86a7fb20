"""What every pipeline shares: many questions at once, each scored, and a failed one recorded instead of fatal."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashrag.config import validated
from flashrag.dataset import Question
from flashrag.episode import Episode, SearchRecord
from flashrag.metrics import AnswerScore, score_answer
from flashrag.pipeline.settings import PipelineSettings


@dataclass(frozen=True, slots=True)
class Answer:
    """What a pipeline made of one question. `failure` says why it could not be answered: an outage, a bug of ours."""

    prediction: str
    searches: tuple[SearchRecord, ...] = ()
    episode: Episode | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A question with its answer and score. A failed question has a score too: it counts as wrong, not as absent."""

    question: Question
    answer: Answer
    score: AnswerScore
    seconds: float


class BasicPipeline(ABC):
    """Answers questions, `concurrency` of them at a time. A subclass says how one is answered."""

    def __init__(self, config: Mapping[str, Any] | PipelineSettings) -> None:
        is_settings = isinstance(config, PipelineSettings)
        self.settings = config if is_settings else validated(PipelineSettings, config, "config")

    @abstractmethod
    async def answer(self, question: Question) -> Answer:
        """The answer to one question."""

    async def run(
        self, questions: Sequence[Question], on_outcome: Callable[[Outcome], None] = lambda _: None
    ) -> list[Outcome]:
        """The outcome of each question, in their order; `on_outcome` sees each one as soon as it is there."""
        gate = asyncio.Semaphore(self.settings.concurrency)

        async def run_one(question: Question) -> Outcome:
            async with gate:
                outcome = await self._outcome(question)
            on_outcome(outcome)
            return outcome

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_one(question)) for question in questions]
        return [task.result() for task in tasks]

    async def _outcome(self, question: Question) -> Outcome:
        started = time.perf_counter()
        try:
            answer = await self.answer(question)
        except Exception as error:  # the boundary between one question and the run: recorded with its reason
            answer = Answer("", failure=f"{type(error).__name__}: {error}")
        prediction = "" if answer.failure else answer.prediction
        score = score_answer(prediction, question.golden_answers)
        return Outcome(question, answer, score, time.perf_counter() - started)
