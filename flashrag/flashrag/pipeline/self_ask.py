"""The model asks itself follow-up questions, and a search supports the answer to each (Self-Ask).

Source: Press et al., 2023, "Measuring and Narrowing the Compositionality Gap in Language Models", arXiv 2210.03350.
The paper inserts a search engine's short answer after "Intermediate answer:". A retriever returns passages instead:
they precede the question, as in FlashRAG's SelfAskPipeline, and the model writes the intermediate answer itself.
"""

from flashrag.dataset import Question
from flashrag.document import Document
from flashrag.episode import ITERATIONS, EndReason, Trajectory
from flashrag.pipeline.answers import cued_answer, marked_answer
from flashrag.pipeline.basic import BasicPipeline
from flashrag.prompts import FINAL_ANSWER, FOLLOW_UP, INTERMEDIATE_ANSWER, SELF_ASK

STOPS = (INTERMEDIATE_ANSWER, "\nQuestion:")
ROUND_TOKENS = 256


class SelfAskPipeline(BasicPipeline):
    """Asks at most `max_iterations` follow-up questions; the passages of each replace the previous ones."""

    async def answer(self, question: Question) -> Trajectory:
        trace, written, documents = self.trace(question), "", tuple[Document, ...]()
        for _ in range(self.settings.max_iterations):
            prompt = SELF_ASK.fill(documents, written, question=question.question)
            completion = await trace.generate(prompt, stop=STOPS, max_tokens=ROUND_TOKENS)
            written = f"{written} {completion.text.strip()}".strip()
            if FINAL_ANSWER in completion.text:
                return trace.of_text(marked_answer(completion.text) or "", EndReason.ANSWERED)
            _, asked, follow_up = completion.text.rpartition(FOLLOW_UP)
            follow_up = follow_up.strip().partition("\n")[0]
            if not asked or not follow_up:
                break
            documents = await trace.search(follow_up)
            written = f"{written}\n{INTERMEDIATE_ANSWER}"
        prompt = SELF_ASK.fill(documents, f"{written}\n{FINAL_ANSWER}".lstrip(), question=question.question)
        completion = await trace.generate(prompt, stop=("\n",), max_tokens=ROUND_TOKENS)
        return trace.of_text(cued_answer(completion.text), ITERATIONS)
