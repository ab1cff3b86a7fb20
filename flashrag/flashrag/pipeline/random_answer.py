"""The floor: a gold answer of another question of the same set.

The draw depends only on the seed and the question's id, so that a continued run gives the same answers.
"""

import bisect
import random
from collections.abc import Sequence

from flashrag.dataset import Question
from flashrag.episode import Trajectory
from flashrag.errors import UserError
from flashrag.pipeline.basic import BasicPipeline


class RandomPipeline(BasicPipeline):
    """Draws one of the other questions, and answers with its first gold answer."""

    needs_retriever = needs_generator = False
    _ids: list[str] | None = None

    def prepare(self, questions: Sequence[Question]) -> None:
        self._answers = {question.id: question.golden_answers[0] for question in questions}
        self._ids = sorted(self._answers)

    async def answer(self, question: Question) -> Trajectory:
        if self._ids is None:
            raise UserError("random draws from the answers of the whole set; call prepare(questions) first")
        own = bisect.bisect_left(self._ids, question.id)
        others = len(self._ids) - 1
        answer = ""
        if others:
            drawn = random.Random(f"{self.settings.seed} {question.id}").randrange(others)
            answer = self._answers[self._ids[drawn + (drawn >= own)]]
        return self.trace(question).of_text(answer, "drawn")
