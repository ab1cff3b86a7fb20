"""ReSearchPipeline on a generator and an index whose every answer is written by hand."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from flashrag.client import SearchControl, controlled
from flashrag.config import Config
from flashrag.dataset import Question
from flashrag.document import Document, Hit, Passage
from flashrag.episode import (
    RESEARCH,
    Dialect,
    Generation,
    LiveSteps,
    Piece,
    Step,
    StepKind,
    Watcher,
    prompt_token_ids,
    steps,
)
from flashrag.episode.result import NO_RESULTS
from flashrag.episode.tool import SEARCH_LIMIT_REACHED
from flashrag.errors import GenerationError, SearchError, UserError
from flashrag.pipeline import ReSearchPipeline
from flashrag.pipeline.trace import PromptTooLong
from flashrag.tools import check_sandbox

EOS = 0


class Model:
    """Searches for the question's last word, then answers with what the result says after "is"."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.eos_token_ids = [EOS]

    async def generate(
        self,
        token_ids: Sequence[int],
        max_tokens: int,
        dialect: Dialect,  # noqa: ARG002
        watcher: Watcher | None = None,
    ) -> Generation:
        if watcher is not None:
            watcher.begins()
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=False)
        if "Abort?" in text:
            return Generation([], aborted=True)
        response = text.partition(" Assistant:")[2]
        if "<result>" not in response:
            word = text.partition(" Assistant:")[0].split()[-1].rstrip("?")
            return self._sample(f"<think> t </think> <search> {word} </search>", max_tokens)
        answer = response.partition(" is ")[2].split("\n")[0]
        return self._sample(f"<answer> \\boxed{{{answer}}} </answer>", max_tokens, [EOS])

    def _sample(self, text: str, max_tokens: int, end: Sequence[int] = ()) -> Generation:
        return Generation([*self.tokenizer.encode(text, add_special_tokens=False), *end][:max_tokens])


class Index:
    """Knows the kings of three dynasties; one query breaks it."""

    KINGS = {"Zhou": "Wu", "Shang": "Tang", "Xia": "Yu"}  # noqa: RUF012

    async def search_scored(self, query: str, top_n: int) -> list[Hit]:
        assert top_n == 5
        if query == "Outage":
            raise SearchError("http://127.0.0.1:1/search cannot be reached")
        return [Hit(Document(query, f'"{query}"\nThe king of {query} is {self.KINGS[query]}'), 0.5)]


def question(word: str, *answers: str) -> Question:
    return Question(word, f"Who was king of {word}?", answers)


@pytest.fixture
def model(tokenizer: Any) -> Model:
    return Model(tokenizer)


@pytest.mark.asyncio
async def test_a_watcher_sees_the_steps_of_its_own_question_as_they_come(model: Model):
    pipeline, pieces = ReSearchPipeline(Config(), Index(), model), list[Piece]()
    live = LiveSteps(pieces.append, "research")
    watched, other = await asyncio.gather(
        pipeline.answer_watched(question("Zhou"), live), pipeline.answer(question("Xia", "yu"))
    )
    *written, answer = steps(watched)
    assert (answer.text, other.answer) == ("Wu", "Yu")
    assert [(piece.kind, piece.text) for piece in pieces if piece.text] == [(step.kind, step.text) for step in written]
    assert watched.metrics == {}  # there is no gold answer
    failed = await pipeline.answer_watched(question("Outage", "a"), live)
    assert (failed.end_reason, failed.metrics["em"]) == ("failed", 0.0)
    assert str(failed.error) == "SearchError: search failed: http://127.0.0.1:1/search cannot be reached"


@pytest.mark.asyncio
async def test_a_trajectory_holds_the_episode_and_reads_as_its_steps(model: Model):
    trajectory = await ReSearchPipeline(Config(), Index(), model).answer(question("Zhou", "wu"))
    passage = Passage("Zhou", '"Zhou"\nThe king of Zhou is Wu', 0.5)
    assert tuple(steps(trajectory)) == (
        Step(StepKind.THINK, "t"),
        Step(StepKind.QUERY, "Zhou"),
        Step(StepKind.RESULT, passage.contents, (passage,)),
        Step(StepKind.GENERATION, "<answer> \\boxed{Wu} </answer>"),
        Step(StepKind.ANSWER, "Wu"),
    )
    assert list(trajectory.prompt_ids) == prompt_token_ids(model.tokenizer, "Who was king of Zhou?")
    assert (trajectory.end_reason, trajectory.format_valid, trajectory.dialect) == ("eos", True, "research")
    first_turn, spliced, second_turn = (len(segment.token_ids) for segment in trajectory.segments)
    # Each of the two calls sends the whole prompt so far.
    assert trajectory.usage.prompt_tokens == 2 * len(trajectory.prompt_ids) + first_turn + spliced
    assert (trajectory.usage.completion_tokens, trajectory.usage.result_tokens) == (first_turn + second_turn, spliced)
    assert (trajectory.usage.generator_calls, trajectory.usage.searches) == (2, 1)
    assert trajectory.usage.latency_s > 0


@pytest.mark.asyncio
async def test_servers_that_fail_are_typed_errors(model: Model):
    pipeline = ReSearchPipeline(Config(), Index(), model)
    with pytest.raises(SearchError, match=r"search failed: http://127\.0\.0\.1:1/search cannot be reached"):
        await pipeline.answer(question("Outage"))
    with pytest.raises(GenerationError, match="the model server aborted the request"):
        await pipeline.answer(question("Abort"))


@pytest.mark.asyncio
async def test_a_prompt_without_room_for_a_response_is_an_error(model: Model):
    config = Config(config_dict={"generator_max_input_len": 20})
    with pytest.raises(PromptTooLong, match="generator_max_input_len=20"):
        await ReSearchPipeline(config, Index(), model).answer(question("Zhou"))


@pytest.mark.asyncio
async def test_prompt_and_response_share_the_context(model: Model):
    prompt = prompt_token_ids(model.tokenizer, "Who was king of Zhou?")
    config = Config(config_dict={"generator_max_input_len": len(prompt) + 12})
    trajectory = await ReSearchPipeline(config, Index(), model).answer(question("Zhou"))
    assert sum(len(segment.token_ids) for segment in trajectory.segments) == 12
    assert (trajectory.answer, trajectory.end_reason) == ("", "length")  # the model's own doing


@pytest.mark.asyncio
async def test_notices_are_results_without_passages(model: Model):
    trajectory = await ReSearchPipeline(Config(config_dict={"max_searches": 0}), Index(), model).answer(
        question("Zhou")
    )
    notices = [step for step in steps(trajectory) if step.kind is StepKind.RESULT]
    assert notices == [Step(StepKind.RESULT, SEARCH_LIMIT_REACHED)]
    assert trajectory.usage.searches == 0


@pytest.mark.asyncio
async def test_questions_that_run_side_by_side_have_stale_results_of_their_own(model: Model):
    stale = controlled(Index(), SearchControl.STALE, seed=0, delay_s=1.0, questions=list)
    pipeline = ReSearchPipeline(Config(), stale, model)
    for trajectory in await pipeline.run([question("Zhou"), question("Xia"), question("Shang")]):
        assert [step.text for step in steps(trajectory) if step.kind is StepKind.RESULT] == [NO_RESULTS]
        assert [call.passages for call in trajectory.calls] == [()]


@pytest.mark.asyncio
async def test_an_instruct_model_gets_its_own_template(model: Model):
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}Assistant:"
    try:
        pipeline = ReSearchPipeline(Config(config_dict={"apply_chat": True}), Index(), model)
        trajectory = await pipeline.answer(question("Zhou"))
    finally:
        model.tokenizer.chat_template = None
    assert trajectory.answer == "Wu"
    assert model.tokenizer.decode(trajectory.prompt_ids).startswith("The user asks a question")


def test_what_cannot_run_is_refused_when_the_pipeline_is_made(model: Model):
    with pytest.raises(UserError, match="concurrency: 0"):
        ReSearchPipeline(Config(config_dict={"concurrency": 0}), Index(), model)
    with pytest.raises(UserError, match="prompt_template_name"):
        ReSearchPipeline(Config(config_dict={"prompt_template_name": "qa"}), Index(), model)
    with pytest.raises(UserError, match="apply_chat=true, but the tokenizer has no chat template"):
        ReSearchPipeline(Config(config_dict={"apply_chat": True}), Index(), model)
    with pytest.raises(UserError, match="ReSearchPipeline needs a retriever"):
        ReSearchPipeline(Config(), None, model)
    model.tokenizer = None
    with pytest.raises(UserError, match="the chat route returns no token ids"):
        ReSearchPipeline(Config(), Index(), model)


CODE = "<think> t </think> <python> print(6 * 7) </python>"


@pytest.mark.asyncio
async def test_with_the_python_tool_the_model_can_run_code(tokenizer: Any):
    try:
        check_sandbox()
    except UserError as refusal:
        pytest.skip(str(refusal))

    class Coder(Model):
        """Searches, runs code, then answers with what it printed."""

        async def generate(self, token_ids: Sequence[int], max_tokens: int, dialect: Dialect) -> Generation:
            assert dialect.stops == ("</search>", "</python>")
            response = self.tokenizer.decode(list(token_ids)).rpartition(" Assistant:")[2]
            if "<search>" not in response:
                return self._sample("<think> t </think> <search> Zhou </search>", max_tokens)
            if "<python>" not in response:
                return self._sample(CODE, max_tokens)
            printed = response.rpartition("<result>\n")[2].split("\n")[0]
            return self._sample(f"<answer> \\boxed{{{printed}}} </answer>", max_tokens, [EOS])

    config = Config(config_dict={"python_tool": True, "prompt_template_name": "qa_python_template"})
    trajectory = await ReSearchPipeline(config, Index(), Coder(tokenizer)).answer(question("Zhou", "42"))
    assert trajectory.answer == "42"
    assert trajectory.format_valid is True
    assert [(call.tool, call.query) for call in trajectory.calls] == [
        ("search", "Zhou"),
        ("python", "print(6 * 7)"),
    ]
    asked = [step for step in steps(trajectory) if step.kind in (StepKind.QUERY, StepKind.RESULT)]
    assert [(step.kind, step.text, len(step.passages)) for step in asked] == [
        (StepKind.QUERY, "Zhou", 0),
        (StepKind.RESULT, '"Zhou"\nThe king of Zhou is Wu', 1),
        (StepKind.QUERY, "print(6 * 7)", 0),
        (StepKind.RESULT, "42", 0),
    ]
    assert ReSearchPipeline(Config(), Index(), Model(tokenizer)).dialect == RESEARCH  # off by default
