"""Many questions at once: their order, their scores, failures, and how many are in flight."""

import asyncio

import pytest

from flashrag.config import Config
from flashrag.dataset import Question
from flashrag.episode import Failure, Trajectory
from flashrag.errors import SearchError
from flashrag.pipeline import BasicPipeline


class Kings(BasicPipeline):
    """Knows the kings of two dynasties; the later one is found sooner."""

    needs_retriever = needs_generator = False
    KINGS = {"Zhou": ("Wu", 0.02), "Shang": ("Tang", 0.0)}  # noqa: RUF012
    in_flight = most_in_flight = cancelled = 0
    prepared = ()

    def prepare(self, questions):
        self.prepared = tuple(question.id for question in questions)

    async def answer(self, question: Question) -> Trajectory:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if question.id == "Outage":
                raise SearchError("the server is gone")
            king, wait_s = self.KINGS.get(question.id.partition(" ")[0], ("", 60.0))
            await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        return self.trace(question).of_text(king, "eos")


def question(word: str, *answers: str) -> Question:
    return Question(word, f"Who was king of {word}?", answers)


TWO = [question("Zhou", "King Wu", "wu"), question("Shang", "Yu")]


@pytest.mark.asyncio
async def test_questions_are_answered_scored_and_kept_in_order():
    pipeline = Kings(Config())
    answered = await pipeline.run(TWO)
    assert [one.question_id for one in answered] == ["Zhou", "Shang"] == list(pipeline.prepared)
    assert [one.answer for one in answered] == ["Wu", "Tang"]
    assert [one.metrics for one in answered] == [{"em": 1.0, "f1": 1.0, "acc": 1.0}, {"em": 0.0, "f1": 0.0, "acc": 0.0}]


@pytest.mark.asyncio
async def test_each_trajectory_is_handed_over_as_it_comes():
    seen: list[Trajectory] = []
    await Kings(Config()).answer_all(TWO, seen.append)
    assert [one.question_id for one in seen] == ["Shang", "Zhou"]


@pytest.mark.asyncio
async def test_a_failed_question_is_recorded_counts_as_wrong_and_stops_no_other():
    outage, fine = await Kings(Config()).run([question("Outage", "Wu"), question("Zhou", "Wu")])
    assert (outage.end_reason, outage.error) == ("failed", Failure("SearchError", "the server is gone"))
    assert (outage.answer, outage.metrics["em"], outage.question_id) == ("", 0.0, "Outage")
    assert (fine.error, fine.metrics["em"]) == (None, 1.0)


@pytest.mark.asyncio
async def test_a_trajectory_that_cannot_be_kept_ends_the_run():
    def refuse(trajectory: Trajectory) -> None:
        raise OSError(f"no room for {trajectory.question_id}")

    with pytest.raises(OSError, match="no room for Shang"):
        await Kings(Config()).answer_all(TWO, refuse)


@pytest.mark.asyncio
@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (5, 5), (64, 30)])
async def test_concurrency_is_used_and_bounded(concurrency: int, most: int):
    pipeline = Kings(Config(config_dict={"concurrency": concurrency}))
    await pipeline.run([question(f"Zhou {number}", "Wu") for number in range(30)])
    assert pipeline.most_in_flight == most


@pytest.mark.asyncio
async def test_cancelling_a_run_cancels_the_questions_in_flight():
    pipeline = Kings(Config())
    run = asyncio.create_task(pipeline.run([question("Xia", "Yu")] * 3))
    await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert pipeline.cancelled == 3
