"""Look ahead one sentence, and search if the model is unsure of it (FLARE, the direct variant).

Source: Jiang et al., 2023, "Active Retrieval Augmented Generation", arXiv 2305.06983. The model first writes a sentence
without passages. If each of its tokens is likely enough (`flare_threshold`), the sentence stays. If not, the sentence
without its unlikely tokens is the query (`flare_mask_threshold`; 0 keeps all tokens), and the model writes it again
from the passages. The defaults are the paper's; FlashRAG uses one threshold of 0.2 for both.
"""

import math
from collections.abc import Sequence

from flashrag.dataset import Question
from flashrag.episode import ITERATIONS, EndReason, Trajectory
from flashrag.errors import UserError
from flashrag.generator import Completion, ScoredToken
from flashrag.pipeline.answers import answer_stops, first_sentence, marked_answer
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.trace import end_reason_of
from flashrag.prompts import REASONING, REASONING_WITH_PASSAGES


class FLAREPipeline(BasicPipeline):
    """Writes at most `max_iterations` sentences, and looks ahead at most `flare_look_ahead_tokens` for each.

    Raises `UserError` if the model server returns no log-probabilities.
    """

    async def answer(self, question: Question) -> Trajectory:
        settings, trace, sentences = self.settings, self.trace(question), list[str]()
        stop, ahead = answer_stops(settings), settings.flare_look_ahead_tokens
        for _ in range(settings.max_iterations):
            written = " ".join(sentences)
            prompt = REASONING.fill(written=written, question=question.question)
            completion = await trace.generate(prompt, stop=stop, max_tokens=ahead, log_probs=True)
            tokens = _sentence_tokens(completion)
            if _is_unsure(tokens, settings.flare_threshold):
                query = _masked(tokens, settings.flare_mask_threshold) or question.question
                documents = await trace.search(query)
                prompt = REASONING_WITH_PASSAGES.fill(documents, written, question=question.question)
                completion = await trace.generate(prompt, stop=stop, max_tokens=ahead)
            sentence = first_sentence(completion.text)
            sentences.append(sentence.strip())
            if answer := marked_answer(sentence):
                return trace.of_text(answer, EndReason.ANSWERED)
            if not sentence.strip():
                return trace.of_text(_last(sentences), end_reason_of(completion.finish_reason))
        return trace.of_text(_last(sentences), ITERATIONS)


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


def _is_unsure(tokens: Sequence[ScoredToken], threshold: float) -> bool:
    return any(math.exp(token.log_prob) < threshold for token in tokens)


def _masked(tokens: Sequence[ScoredToken], threshold: float) -> str:
    """The sentence without its unlikely tokens."""
    return "".join(token.text for token in tokens if math.exp(token.log_prob) >= threshold).strip()


def _last(sentences: Sequence[str]) -> str:
    """The last sentence that is not empty: the answer of a chain that marks none."""
    return next((sentence for sentence in reversed(sentences) if sentence), "")
