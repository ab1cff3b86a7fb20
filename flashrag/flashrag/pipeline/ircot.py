"""Interleave a chain of thought with retrieval: each new sentence is the next query (IRCoT).

Source: Trivedi et al., 2023, "Interleaving Retrieval with Chain-of-Thought Reasoning for Knowledge-Intensive
Multi-Step Questions", arXiv 2212.10509. The answer is read from the chain, as in FlashRAG; in the paper, a second model
reads the collected passages. If no round gives an answer, a last prompt asks for it.
"""

from collections.abc import Mapping

from flashrag.dataset import Question
from flashrag.document import Document
from flashrag.episode import ITERATIONS, EndReason, Trajectory
from flashrag.pipeline.answers import answer_stops, cued_answer, first_sentence, marked_answer
from flashrag.pipeline.basic import BasicPipeline
from flashrag.prompts import ANSWER_CUE, REASONING_WITH_PASSAGES, Prompt

SENTENCE_TOKENS = 128
MAX_PASSAGES = 15  # the paper's


class IRCOTPipeline(BasicPipeline):
    """Writes at most `max_iterations` sentences; collects passages in the order of their discovery, each once."""

    async def answer(self, question: Question) -> Trajectory:
        trace, thoughts = self.trace(question), list[str]()
        found = {document.id: document for document in await trace.search(question.question)}
        stop = answer_stops(self.settings)
        for rounds_left in reversed(range(self.settings.max_iterations)):
            prompt = _prompt(question, found, thoughts)
            completion = await trace.generate(prompt, stop=stop, max_tokens=SENTENCE_TOKENS)
            thought = first_sentence(completion.text).strip()
            if not thought:
                break
            thoughts.append(thought)
            if answer := marked_answer(thought):
                return trace.of_text(answer, EndReason.ANSWERED)
            if rounds_left:
                for document in await trace.search(thought):
                    found.setdefault(document.id, document)
        prompt = _prompt(question, found, [*thoughts, ANSWER_CUE])
        completion = await trace.generate(prompt, stop=stop, max_tokens=SENTENCE_TOKENS)
        return trace.of_text(cued_answer(completion.text), ITERATIONS)


def _prompt(question: Question, found: Mapping[str, Document], thoughts: list[str]) -> Prompt:
    documents = tuple(found.values())[:MAX_PASSAGES]
    return REASONING_WITH_PASSAGES.fill(documents, " ".join(thoughts), question=question.question)
