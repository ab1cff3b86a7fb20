"""The floor: another question's answer, the same one whenever it is asked."""

import pytest

from flashrag.config import Config
from flashrag.dataset import Question
from flashrag.errors import UserError
from flashrag.pipeline import RandomPipeline

QUESTIONS = [Question(str(number), "?", (f"answer {number}", "alias")) for number in range(20)]


@pytest.mark.asyncio
async def test_an_answer_is_another_questions_and_does_not_depend_on_the_order():
    forth, back = RandomPipeline(Config()), RandomPipeline(Config())
    forth.prepare(QUESTIONS)
    back.prepare(QUESTIONS[::-1])
    drawn = [(await forth.answer(question)).answer for question in QUESTIONS]
    assert [(await back.answer(question)).answer for question in QUESTIONS[::-1]] == drawn[::-1]
    assert set(drawn) <= {f"answer {number}" for number in range(20)}
    assert all(answer != question.golden_answers[0] for answer, question in zip(drawn, QUESTIONS, strict=True))
    assert len(set(drawn)) > 5
    other = RandomPipeline(Config(config_dict={"seed": 7}))
    other.prepare(QUESTIONS)
    assert [(await other.answer(question)).answer for question in QUESTIONS] != drawn


@pytest.mark.asyncio
async def test_a_single_question_has_no_other_and_an_unknown_set_is_refused():
    (answered,) = await RandomPipeline(Config()).run(QUESTIONS[:1])
    assert (answered.answer, answered.metrics["em"]) == ("", 0.0)
    with pytest.raises(UserError, match="call prepare"):
        await RandomPipeline(Config()).answer(QUESTIONS[0])
