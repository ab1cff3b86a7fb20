"""Retrieve and answer in turns: each query is the question and the previous answer (Iter-RetGen).

Source: Shao et al., 2023, "Enhancing Retrieval-Augmented Large Language Models with Iterative Retrieval-Generation
Synergy", arXiv 2305.15294. Each turn answers by the default prompt, as in FlashRAG's IterativePipeline, which gave the
published figures; the turns of the paper write a chain of thought.
"""

from flashrag.dataset import Question
from flashrag.episode import Trajectory
from flashrag.pipeline.answers import answer_limits, short_answer
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.trace import end_reason_of
from flashrag.prompts import WITH_PASSAGES


class IterativePipeline(BasicPipeline):
    """Takes `iter_num` turns; the passages of each turn replace the previous ones."""

    async def answer(self, question: Question) -> Trajectory:
        trace, answer, finish_reason = self.trace(question), "", None
        for _ in range(self.settings.iter_num):
            documents = await trace.search(f"{question.question} {answer}".rstrip())
            prompt = WITH_PASSAGES.fill(documents, question=question.question)
            completion = await trace.generate(prompt, **answer_limits(self.settings))
            answer, finish_reason = short_answer(completion.text), completion.finish_reason
        return trace.of_text(answer, end_reason_of(finish_reason))
