"""ReSearchPipeline on a generator and an index whose every answer is written by hand."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from flashrag.config import Config
from flashrag.dataset import Question
from flashrag.document import Document, Hit
from flashrag.episode import RESEARCH, Dialect, EndReason, Episode, Generation, Segment, Source, prompt_token_ids
from flashrag.episode.tool import SEARCH_LIMIT_REACHED
from flashrag.errors import GenerationError, SearchError, UserError
from flashrag.pipeline import Passage, ReSearchPipeline, Step, StepKind
from flashrag.pipeline.episode_pipeline import episode_steps
from flashrag.pipeline.trace import PromptTooLong
from flashrag.tools import check_sandbox

EOS = 0


class Model:
    """Searches for the question's last word, then answers with what the result says after "is"."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.eos_token_ids = [EOS]

    async def generate(self, token_ids: Sequence[int], max_tokens: int, dialect: Dialect) -> Generation:  # noqa: ARG002
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
async def test_an_outcome_holds_the_episode_and_its_steps(model: Model):
    outcome = await ReSearchPipeline(Config(), Index(), model).answer(question("Zhou", "wu"))
    passage = Passage("Zhou", '"Zhou"\nThe king of Zhou is Wu', 0.5)
    assert outcome.steps == (
        Step(StepKind.THINK, "t"),
        Step(StepKind.QUERY, "Zhou"),
        Step(StepKind.RESULT, passage.contents, (passage,)),
        Step(StepKind.GENERATION, "<answer> \\boxed{Wu} </answer>"),
        Step(StepKind.ANSWER, "Wu"),
    )
    episode = outcome.episode
    assert episode is not None
    assert list(episode.prompt_ids) == prompt_token_ids(model.tokenizer, "Who was king of Zhou?")
    assert (outcome.end_reason, episode.ended_by, episode.format_fault) == ("eos", EndReason.EOS, None)
    sampled, spliced = sum(episode.loss_mask), episode.loss_mask.count(0)
    first_turn = len(episode.segments[0].token_ids)
    # Each of the two calls sends the whole prompt so far.
    assert outcome.usage.prompt_tokens == 2 * len(episode.prompt_ids) + first_turn + spliced
    assert outcome.usage.completion_tokens == sampled
    assert (outcome.usage.generator_calls, outcome.usage.searches) == (2, 1)
    assert outcome.usage.latency_s > 0


@pytest.mark.asyncio
async def test_a_record_keeps_what_trainings_trajectories_keep(model: Model):
    outcome = await ReSearchPipeline(Config(), Index(), model).answer(question("Zhou", "wu"))
    record = json.loads(json.dumps(outcome.as_record()))
    assert outcome.episode is not None
    assert [segment["source"] for segment in record["segments"]] == ["model", "result", "model"]
    ids = [token_id for segment in record["segments"] for token_id in segment["token_ids"]]
    assert ids == outcome.episode.response_ids
    assert (record["prediction"], record["end_reason"], record["format_fault"]) == ("Wu", "eos", None)
    assert record["steps"][2]["passages"] == [
        {"id": "Zhou", "contents": '"Zhou"\nThe king of Zhou is Wu', "score": 0.5}
    ]


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
    outcome = await ReSearchPipeline(config, Index(), model).answer(question("Zhou"))
    assert outcome.episode is not None
    assert len(outcome.episode.response_ids) == 12
    assert (outcome.prediction, outcome.end_reason) == ("", "length")  # the model's own doing


@pytest.mark.asyncio
async def test_notices_are_results_without_passages(model: Model):
    outcome = await ReSearchPipeline(Config(config_dict={"max_searches": 0}), Index(), model).answer(question("Zhou"))
    notices = [step for step in outcome.steps if step.kind is StepKind.RESULT]
    assert notices == [Step(StepKind.RESULT, SEARCH_LIMIT_REACHED)]
    assert outcome.usage.searches == 0


@pytest.mark.asyncio
async def test_an_instruct_model_gets_its_own_template(model: Model):
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}Assistant:"
    try:
        pipeline = ReSearchPipeline(Config(config_dict={"apply_chat": True}), Index(), model)
        outcome = await pipeline.answer(question("Zhou"))
    finally:
        model.tokenizer.chat_template = None
    assert (outcome.prediction, outcome.episode is not None) == ("Wu", True)
    assert outcome.episode is not None
    assert model.tokenizer.decode(outcome.episode.prompt_ids).startswith("The user asks a question")


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
    with pytest.raises(UserError, match="which the chat route has not"):
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
    outcome = await ReSearchPipeline(config, Index(), Coder(tokenizer)).answer(question("Zhou", "42"))
    assert outcome.prediction == "42"
    assert outcome.episode is not None
    assert outcome.episode.format_fault is None
    assert [(search.tool, search.query) for search in outcome.episode.searches] == [
        ("search", "Zhou"),
        ("python", "print(6 * 7)"),
    ]
    asked = [step for step in outcome.steps if step.kind in (StepKind.QUERY, StepKind.RESULT)]
    assert [(step.kind, step.text, len(step.passages)) for step in asked] == [
        (StepKind.QUERY, "Zhou", 0),
        (StepKind.RESULT, '"Zhou"\nThe king of Zhou is Wu', 1),
        (StepKind.QUERY, "print(6 * 7)", 0),
        (StepKind.RESULT, "42", 0),
    ]
    assert ReSearchPipeline(Config(), Index(), Model(tokenizer)).dialect == RESEARCH  # off by default


def test_blocks_left_open_end_where_the_next_begins():
    text = "so <think> a <search> q </search>"
    episode = Episode((1,), [Segment(Source.MODEL, text, (2,)), Segment(Source.RESULT, "r", (3,))])
    assert episode_steps(episode, RESEARCH, []) == [
        Step(StepKind.GENERATION, "so"),
        Step(StepKind.THINK, "a"),
        Step(StepKind.QUERY, "q"),
        Step(StepKind.RESULT, "r"),
    ]
    cut = Episode((1,), [Segment(Source.MODEL, "<think> t </think> <search> q", (2,))])
    assert episode_steps(cut, RESEARCH, []) == [Step(StepKind.THINK, "t"), Step(StepKind.QUERY, "q")]
