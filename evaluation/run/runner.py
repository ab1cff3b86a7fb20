"""Asking many questions at once: each outcome is handed over as it arrives, and a failed question stops no other."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from evaluation.run.records import answered_record, failed_record
from flashrag.dataset import Question
from flashrag.pipeline import Outcome


class Pipeline(Protocol):
    """The part of a method that is needed here: an answer, or a typed error, for each question on its own."""

    async def answer(self, question: Question, /) -> Outcome: ...


async def answer_all(
    pipeline: Pipeline,
    questions: Sequence[Question],
    attempts: Mapping[str, int],
    concurrency: int,
    on_record: Callable[[dict[str, Any]], None],
) -> None:
    """Answer each question, `concurrency` of them at a time; `on_record` gets the record of each.

    A SIGTERM cancels, as Ctrl-C does: what was handed over stays. What `on_record` raises ends the run.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    queue = iter(questions)

    async def work() -> None:
        for question in queue:  # one iterator for all: the next question goes to whoever is free
            on_record(await _answer_one(pipeline, question, attempts.get(question.id, 0) + 1))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(questions))):
                group.create_task(work())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def _answer_one(pipeline: Pipeline, question: Question, attempt: int) -> dict[str, Any]:
    try:
        outcome = await pipeline.answer(question)
        return answered_record(question, outcome, attempt)
    except Exception as error:  # the boundary between one question and the run: recorded with its reason
        return failed_record(question, error, attempt)
