"""The floor: a right answer to another question of the same set.

Chosen by the seed and the question's id alone, so that a continued run answers as an undisturbed one.
"""

import random
from collections.abc import Sequence

from flashrag.dataset import Question
from flashrag.errors import UserError
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.outcome import Outcome


class RandomPipeline(BasicPipeline):
    """Draws from the golden answers of the other questions, each question's first one."""

    needs_retriever = needs_generator = False
    _answers: dict[str, str] | None = None

    def prepare(self, questions: Sequence[Question]) -> None:
        self._answers = {question.id: question.golden_answers[0] for question in questions}

    async def answer(self, question: Question) -> Outcome:
        if self._answers is None:
            raise UserError("random draws from the answers of the whole set; call prepare(questions) first")
        others = sorted(question_id for question_id in self._answers if question_id != question.id)
        draw = random.Random(f"{self.settings.seed} {question.id}")
        prediction = self._answers[draw.choice(others)] if others else ""
        return self.trace().outcome(prediction, "drawn")
