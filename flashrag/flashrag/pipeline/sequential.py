"""Retrieve once, then answer (naive RAG), or answer at once (zero-shot).

Source: FlashRAG's SequentialPipeline (Jin et al., 2024, arXiv 2405.13576) and its default prompts; the method goes
back to Lewis et al., 2020, arXiv 2005.11401. FlashRAG's `naive_run` is ZeroShotPipeline here.
"""

from flashrag.dataset import Question
from flashrag.episode import Trajectory
from flashrag.pipeline.answers import answer_limits, short_answer
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.trace import end_reason_of
from flashrag.prompts import WITH_PASSAGES, WITHOUT_PASSAGES


class SequentialPipeline(BasicPipeline):
    """Searches once, with the question itself, and answers from the passages."""

    async def answer(self, question: Question) -> Trajectory:
        trace = self.trace(question)
        documents = await trace.search(question.question)
        prompt = WITH_PASSAGES.fill(documents, question=question.question)
        completion = await trace.generate(prompt, **answer_limits(self.settings))
        return trace.of_text(short_answer(completion.text), end_reason_of(completion.finish_reason))


class ZeroShotPipeline(BasicPipeline):
    """Answers from the model's own knowledge: the baseline that shows the gain from retrieval."""

    needs_retriever = False

    async def answer(self, question: Question) -> Trajectory:
        trace = self.trace(question)
        prompt = WITHOUT_PASSAGES.fill(question=question.question)
        completion = await trace.generate(prompt, **answer_limits(self.settings))
        return trace.of_text(short_answer(completion.text), end_reason_of(completion.finish_reason))
