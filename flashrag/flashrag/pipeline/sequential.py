"""Retrieve once, then answer (naive RAG), or answer at once (zero-shot).

Source: FlashRAG's SequentialPipeline (Jin et al., 2024, arXiv 2405.13576), whose default prompts are used; the method
goes back to Lewis et al., 2020, arXiv 2005.11401. FlashRAG's `naive_run` is a pipeline of its own here.
"""

from flashrag.dataset import Question
from flashrag.episode import Trajectory
from flashrag.pipeline.answers import answer_limits, short_answer
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.trace import end_reason_of
from flashrag.prompts import WITH_PASSAGES, WITHOUT_PASSAGES


class SequentialPipeline(BasicPipeline):
    """One search with the question itself, one answer from what it finds."""

    async def answer(self, question: Question) -> Trajectory:
        trace = self.trace(question)
        documents = await trace.search(question.question)
        prompt = WITH_PASSAGES.fill(documents, question=question.question)
        completion = await trace.generate(prompt, **answer_limits(self.settings))
        return trace.of_text(short_answer(completion.text), end_reason_of(completion.finish_reason))


class ZeroShotPipeline(BasicPipeline):
    """The model's own knowledge: what retrieval adds is measured against it."""

    needs_retriever = False

    async def answer(self, question: Question) -> Trajectory:
        trace = self.trace(question)
        prompt = WITHOUT_PASSAGES.fill(question=question.question)
        completion = await trace.generate(prompt, **answer_limits(self.settings))
        return trace.of_text(short_answer(completion.text), end_reason_of(completion.finish_reason))
