"""Many questions at once: their order, their scores, what fails, and how many are in flight."""

import asyncio

import pytest

from flashrag.config import Config
from flashrag.dataset import Question
from flashrag.errors import SearchError
from flashrag.pipeline import Answered, BasicPipeline, Outcome


class Kings(BasicPipeline):
    """Knows the kings of two dynasties; the later one is found sooner."""

    needs_retriever = needs_generator = False
    KINGS = {"Zhou": ("Wu", 0.02), "Shang": ("Tang", 0.0)}  # noqa: RUF012
    in_flight = most_in_flight = cancelled = 0
    prepared = ()

    def prepare(self, questions):
        self.prepared = tuple(question.id for question in questions)

    async def answer(self, question: Question) -> Outcome:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if question.id == "Outage":
                raise SearchError("the server is gone")
            king, wait_s = self.KINGS.get(question.id, ("", 60.0))
            await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        return self.trace().outcome(king, "eos")


def question(word: str, *answers: str) -> Question:
    return Question(word, f"Who was king of {word}?", answers)


@pytest.mark.asyncio
async def test_questions_are_answered_scored_and_kept_in_order():
    pipeline, seen = Kings(Config()), list[Answered]()
    answered = await pipeline.run([question("Zhou", "King Wu", "wu"), question("Shang", "Yu")], seen.append)
    assert [one.question.id for one in answered] == ["Zhou", "Shang"] == list(pipeline.prepared)
    assert [one.outcome and one.outcome.prediction for one in answered] == ["Wu", "Tang"]
    assert [one.score for one in answered] == [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]
    assert [one.question.id for one in seen] == ["Shang", "Zhou"]  # as they came


@pytest.mark.asyncio
async def test_what_fails_is_recorded_counts_as_wrong_and_stops_nothing():
    outage, fine = await Kings(Config()).run([question("Outage", "Wu"), question("Zhou", "Wu")])
    assert outage == Answered(question("Outage", "Wu"), None, (0.0, 0.0, 0.0), "SearchError: the server is gone")
    assert (fine.failure, fine.score.em) == (None, 1.0)


@pytest.mark.asyncio
@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (5, 5), (64, 30)])
async def test_concurrency_is_used_and_bounded(concurrency: int, most: int):
    pipeline = Kings(Config(config_dict={"concurrency": concurrency}))
    await pipeline.run([question("Zhou", "Wu")] * 30)
    assert pipeline.most_in_flight == most


@pytest.mark.asyncio
async def test_cancelling_a_run_cancels_what_is_in_flight():
    pipeline = Kings(Config())
    run = asyncio.create_task(pipeline.run([question("Xia", "Yu")] * 3))
    await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert pipeline.cancelled == 3
