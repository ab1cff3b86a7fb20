"""Retrieve first, then answer (naive RAG, Iter-RetGen), or answer at once (zero-shot).

Sources: FlashRAG's SequentialPipeline (Jin et al., 2024, arXiv 2405.13576), whose own prompts gave the published
figures (`prompt_file`); naive RAG goes back to Lewis et al., 2020, arXiv 2005.11401, and FlashRAG's `naive_run` is
ZeroShotPipeline here. Shao et al., 2023, "Enhancing Retrieval-Augmented Large Language Models with Iterative
Retrieval-Generation Synergy", arXiv 2305.15294.
"""

from flashrag.dataset import Question
from flashrag.episode import EndReason, Trajectory
from flashrag.pipeline.basic import BasicPipeline


class SequentialPipeline(BasicPipeline):
    """Searches once, with the question itself, and answers from the passages."""

    own_prompt = "with_passages"

    async def answer(self, question: Question) -> Trajectory:
        trace = self.trace(question)
        documents = await trace.search(question.question)
        return trace.of_text(*await trace.ask(self.template.fill(documents, question=question.question)))


class ZeroShotPipeline(BasicPipeline):
    """Answers from the model's own knowledge: the baseline that shows the gain from retrieval."""

    needs_retriever = False
    own_prompt = "without_passages"

    async def answer(self, question: Question) -> Trajectory:
        trace = self.trace(question)
        return trace.of_text(*await trace.ask(self.template.fill(question=question.question)))


class IterativePipeline(BasicPipeline):
    """Retrieves and answers in `iter_num` turns; each query is the question and the previous answer.

    The passages of each turn replace the previous ones. Each turn answers by the prompt of naive RAG, as in FlashRAG's
    IterativePipeline; the turns of the paper write a chain of thought.
    """

    own_prompt = "with_passages"

    async def answer(self, question: Question) -> Trajectory:
        trace, answer, end_reason = self.trace(question), "", EndReason.EOS
        for _ in range(self.settings.iter_num):
            documents = await trace.search(f"{question.question} {answer}".rstrip())
            answer, end_reason = await trace.ask(self.template.fill(documents, question=question.question))
        return trace.of_text(answer, end_reason)
