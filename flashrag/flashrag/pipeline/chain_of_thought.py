"""Methods that interleave retrieval with a chain of thought: IRCoT, Self-Ask and FLARE.

All write the chain in rounds, at most `max_iterations`, and find its sentences and its answer by the same rules.
"""

import math
import re
from collections.abc import Sequence

from flashrag.dataset import Question
from flashrag.document import Document
from flashrag.episode import ITERATIONS, EndReason, Trajectory
from flashrag.errors import UserError
from flashrag.generator import Completion, ScoredToken
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.trace import Trace
from flashrag.prompts import Prompt, PromptTemplate

SENTENCE_TOKENS = 128
ROUND_TOKENS = 256  # a follow-up question with its answer
MAX_PASSAGES = 15  # the paper's

# What a prompt must teach a model to write, also one from a file.
ANSWER_CUE = "So the answer is:"
FOLLOW_UP = "Follow up:"
INTERMEDIATE_ANSWER = "Intermediate answer:"
FINAL_ANSWER = "So the final answer is:"

_MARKER = re.compile(r"\b(?:final )?answer is:?\s*", re.IGNORECASE)
# The period of an initial ("J. R. R."), a title ("Dr.") or a number ("3.5") does not end a sentence.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\bvs)[.!?][\"')\]]*(?=\s|$)|\n"
)


class IRCOTPipeline(BasicPipeline):
    """Each new sentence is the next query; collects passages in the order of their discovery, each once.

    Source: Trivedi et al., 2023, "Interleaving Retrieval with Chain-of-Thought Reasoning for Knowledge-Intensive
    Multi-Step Questions", arXiv 2212.10509. The answer is read from the chain, as in FlashRAG; in the paper, a second
    model reads the collected passages. If no round gives an answer, a last prompt asks for it.
    """

    own_prompt = "reasoning_with_passages"

    async def answer(self, question: Question) -> Trajectory:
        trace, thoughts = self.trace(question), list[str]()
        found = {document.id: document for document in await trace.search(question.question)}
        stop = self.settings.answer_stops
        for rounds_left in reversed(range(self.settings.max_iterations)):
            prompt = _prompt(self.template, question, tuple(found.values())[:MAX_PASSAGES], thoughts)
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
        documents = tuple(found.values())[:MAX_PASSAGES]
        return await _cued(trace, _prompt(self.template, question, documents, [*thoughts, ANSWER_CUE]), stop)


def _prompt(
    template: PromptTemplate, question: Question, documents: tuple[Document, ...], sentences: Sequence[str]
) -> Prompt:
    return template.fill(documents, " ".join(sentences), question=question.question)


async def _cued(trace: Trace, prompt: Prompt, stop: Sequence[str]) -> Trajectory:
    """The end of a chain that gave no answer: the reply to a prompt that ends in the cue."""
    completion = await trace.generate(prompt, stop=stop, max_tokens=SENTENCE_TOKENS)
    return trace.of_text(cued_answer(completion.text), ITERATIONS)


class SelfAskPipeline(BasicPipeline):
    """The model asks itself follow-up questions; the passages for each replace the previous ones.

    Source: Press et al., 2023, "Measuring and Narrowing the Compositionality Gap in Language Models", arXiv 2210.03350.
    The paper inserts a search engine's short answer after "Intermediate answer:". A retriever returns passages instead:
    they precede the question, as in FlashRAG's SelfAskPipeline, and the model writes the intermediate answer itself.
    """

    own_prompt = "self_ask"

    async def answer(self, question: Question) -> Trajectory:
        trace, written, documents = self.trace(question), "", tuple[Document, ...]()
        template, stops = self.template, (INTERMEDIATE_ANSWER, "\nQuestion:")
        for _ in range(self.settings.max_iterations):
            prompt = template.fill(documents, written, question=question.question)
            completion = await trace.generate(prompt, stop=stops, max_tokens=ROUND_TOKENS)
            written = f"{written} {completion.text.strip()}".strip()
            if FINAL_ANSWER in completion.text:
                return trace.of_text(marked_answer(completion.text) or "", EndReason.ANSWERED)
            _, asked, follow_up = completion.text.rpartition(FOLLOW_UP)
            follow_up = follow_up.strip().partition("\n")[0]
            if not asked or not follow_up:
                break
            documents = await trace.search(follow_up)
            written = f"{written}\n{INTERMEDIATE_ANSWER}"
        prompt = template.fill(documents, f"{written}\n{FINAL_ANSWER}".lstrip(), question=question.question)
        completion = await trace.generate(prompt, stop=("\n",), max_tokens=ROUND_TOKENS)
        return trace.of_text(cued_answer(completion.text), ITERATIONS)


class FLAREPipeline(BasicPipeline):
    """Looks ahead one sentence, at most `flare_look_ahead_tokens`, and searches if the model is unsure of it.

    Source: Jiang et al., 2023, "Active Retrieval Augmented Generation", arXiv 2305.06983, the direct variant. The model
    first writes a sentence without passages. If each of its tokens is likely enough (`flare_threshold`), the sentence
    stays. If not, the sentence without its unlikely tokens is the query (`flare_mask_threshold`; 0 keeps all tokens),
    and the model writes it again from the passages. The defaults are the paper's; FlashRAG uses one threshold of 0.2
    for both. If no sentence gives an answer, a last prompt asks for it, with the passages that were found last.
    Raises `UserError` if the model server returns no log-probabilities.
    """

    own_prompt = "reasoning"

    async def answer(self, question: Question) -> Trajectory:
        settings, trace = self.settings, self.trace(question)
        stop, ahead = settings.answer_stops, settings.flare_look_ahead_tokens
        sentences, found = list[str](), tuple[Document, ...]()
        for _ in range(settings.max_iterations):
            prompt = _prompt(self.template, question, (), sentences)
            completion = await trace.generate(prompt, stop=stop, max_tokens=ahead, log_probs=True)
            tokens = _sentence_tokens(completion)
            if any(math.exp(token.log_prob) < settings.flare_threshold for token in tokens):
                query = _masked(tokens, settings.flare_mask_threshold) or question.question
                found = await trace.search(query)
                prompt = _prompt(self._reading(found), question, found, sentences)
                completion = await trace.generate(prompt, stop=stop, max_tokens=ahead)
            sentence = first_sentence(completion.text).strip()
            if not sentence:
                break
            sentences.append(sentence)
            if answer := marked_answer(sentence):
                return trace.of_text(answer, EndReason.ANSWERED)
        return await _cued(trace, _prompt(self._reading(found), question, found, [*sentences, ANSWER_CUE]), stop)

    def _reading(self, documents: tuple[Document, ...]) -> PromptTemplate:
        """The template for these passages, of which there may be none."""
        reading = self.template.with_passages
        assert reading is not None, "the file of a prompt was compared with our own"
        return reading if documents else self.template


def _sentence_tokens(completion: Completion) -> list[ScoredToken]:
    """The tokens of the first sentence, including its end."""
    if completion.tokens is None and completion.text:
        raise UserError(
            "flare needs the log-probabilities of the sampled tokens, and the model server returned none; use a server "
            "that returns them (vLLM and SGLang do), or another method"
        )
    left, chosen = len(first_sentence(completion.text)), []
    for token in completion.tokens or ():
        if left <= 0:
            break
        chosen.append(token)
        left -= len(token.text)
    return chosen


def _masked(tokens: Sequence[ScoredToken], threshold: float) -> str:
    """The sentence without its unlikely tokens."""
    return "".join(token.text for token in tokens if math.exp(token.log_prob) >= threshold).strip()


def marked_answer(text: str) -> str | None:
    """The text from the last "answer is" of a chain of thought to the end of its line; None if there is no marker.

    >>> marked_answer("Wu came first. So the answer is: King Wu.")
    'King Wu'
    """
    matches = list(_MARKER.finditer(text))
    if not matches:
        return None
    return text[matches[-1].end() :].partition("\n")[0].strip().removesuffix(".").strip()


def cued_answer(text: str) -> str:
    """The answer in a text that continues "the answer is:".

    >>> cued_answer(" J. R. R. Tolkien. He was a don.")
    'J. R. R. Tolkien'
    """
    return first_sentence(text).strip().removesuffix(".").strip()


def first_sentence(text: str) -> str:
    """The beginning of a text up to the end of its first sentence, including the white space before it.

    >>> first_sentence(" J. R. R. Tolkien wrote it. He was a don.")
    ' J. R. R. Tolkien wrote it.'
    """
    begin = len(text) - len(text.lstrip())
    match = _SENTENCE_END.search(text, begin)
    return text[: match.end()].rstrip("\n") if match else text
