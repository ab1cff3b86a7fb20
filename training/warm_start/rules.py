r"""Transcripts by rules: the same episode as a rollout, with a writer of fixed sentences in the place of the model.

The writer searches with the question itself. If the spliced result holds a gold answer, the writer gives that answer;
if not, it searches once more, with the title of the first passage added. If that finds nothing either, the transcript
becomes one that answers at once, as from memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from flashrag.client import RetrievalClient
from flashrag.episode import (
    EndReason,
    EpisodeCodec,
    Generation,
    Limits,
    ToolResult,
    Trajectory,
    prompt_token_ids,
    run_episode,
)
from flashrag.errors import SearchError
from flashrag.metrics import holds_answer, score_answer
from flashrag.prompts import ChosenPrompt
from flashrag.questions import Question

LOOKS_UP = "I need to find out: {question}"
LOOKS_AGAIN = "The result does not say it. I search for more about {title}."
HAS_FOUND = "The result says that it is {answer}."
KNOWS = "I think that I know this: {question}"


@dataclass(frozen=True, slots=True)
class Rules:
    """The parts of an episode that do not depend on the question."""

    codec: EpisodeCodec
    eos_token_id: int
    client: RetrievalClient
    limits: Limits
    prompt: ChosenPrompt
    apply_chat: bool


@dataclass(slots=True)
class _Writer:
    """Writes one episode; `generate` and `search` are the episode's own interfaces."""

    rules: Rules
    question: Question
    knows: bool = False
    read_tokens: int = 0  # of the response, up to the end of the last segment that was written
    found: list[ToolResult] = field(default_factory=list)

    async def search(self, query: str) -> ToolResult:
        self.found.append(ToolResult.ranked(await self.rules.client.search_scored(query)))
        return self.found[-1]

    async def generate(self, token_ids: list[int], max_tokens: int) -> Generation:
        written = self._turn(
            self.rules.codec.tokenizer.decode(token_ids[self.read_tokens :], skip_special_tokens=False)
        )
        self.read_tokens = len(token_ids) + len(written)
        return Generation(written[:max_tokens])

    def _turn(self, result: str) -> list[int]:
        question, searches = self.question.question, len(self.found)
        if self.knows:
            answer = next(answer for answer in self.question.golden_answers if answer.strip())
            return self._answer(KNOWS.format(question=question), answer)
        if not searches:
            return self._search(LOOKS_UP.format(question=question), question)
        if (answer := held_answer(result, self.question.golden_answers)) is not None:
            return self._answer(HAS_FOUND.format(answer=answer), answer)
        passages = self.found[-1].passages
        if passages and searches < self.rules.limits.max_searches:
            title = passages[0].title
            return self._search(LOOKS_AGAIN.format(title=title), f"{question} {title}")
        return [self.rules.eos_token_id]  # nothing to answer with: this episode is not kept

    def _search(self, thought: str, query: str) -> list[int]:
        return self._block(thought, self.rules.codec.dialect.render_search(query))

    def _answer(self, thought: str, answer: str) -> list[int]:
        dialect = self.rules.codec.dialect
        assert dialect.answer is not None, "a dialect without an answer block has no rule to write by"
        block = f"{dialect.answer.open} {dialect.shown_answer(answer)} {dialect.answer.close}"
        # In a dialect whose engine stops at the answer, the model never samples the end of sequence.
        end = () if dialect.stops_at_answer else (self.rules.eos_token_id,)
        return [*self._block(thought, block), *end]

    def _block(self, thought: str, block: str) -> list[int]:
        think = self.rules.codec.dialect.think
        # A chat template's prompt ends with a line break; a base model's and a result end with a word or a tag.
        lead = "" if self.rules.apply_chat and not self.read_tokens else " "
        return self.rules.codec.encode_text(f"{lead}{think.open} {thought} {think.close} {block}")


def held_answer(text: str, gold_answers: Sequence[str]) -> str | None:
    """The first gold answer that a text holds."""
    return next((answer for answer in gold_answers if holds_answer(text, [answer])), None)


async def write_transcript(question: Question, rules: Rules, knows: bool = False) -> Trajectory:
    """The transcript of one question; with `knows` it answers at once, without a search.

    Raises `SearchError` if the server does not answer.
    """
    tokenizer = rules.codec.tokenizer
    prompt_ids = prompt_token_ids(tokenizer, question.question, rules.prompt, rules.apply_chat)
    writer = _Writer(rules, question, knows)
    episode = await run_episode(prompt_ids, writer.generate, writer.search, rules.codec, rules.limits)
    if episode.end_reason is EndReason.SEARCH_FAILED:
        raise SearchError(f"question {question.id}: {episode.calls[-1].error}")
    return Trajectory.of_episode(
        episode,
        question_id=question.id,
        question=question.question,
        gold_answers=question.golden_answers,
        metrics=score_answer(episode.answer, question.golden_answers)._asdict(),
    )
