"""ReSearchPipeline on a generator and an index whose every answer is written by hand."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from flashrag.config import Config
from flashrag.dataset import Question
from flashrag.document import Document
from flashrag.episode import EndReason, Generation
from flashrag.errors import SearchError, UserError
from flashrag.pipeline import Answer, BasicPipeline, Outcome, ReSearchPipeline
from flashrag.prompt_ids import prompt_token_ids

EOS = 0


class Model:
    """Searches for the question's last word, then answers with what the result says after "is"."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.eos_token_ids = [EOS]
        self.in_flight = self.most_in_flight = 0

    async def generate(self, token_ids: Sequence[int], max_tokens: int) -> Generation:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.001)
        self.in_flight -= 1
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=False)
        if "Crash?" in text:
            raise RuntimeError("the model server is gone")
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

    async def search(self, query: str) -> list[Document]:
        if query == "Outage":
            raise SearchError("http://127.0.0.1:1/search cannot be reached")
        return [Document(query, f'"{query}"\nThe king of {query} is {self.KINGS[query]}')]


class LocalIndex:
    """The same as a blocking retriever, as flashrag.retriever has them."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.topk: list[int] = []

    def search(self, query: str, num: int) -> list[Document]:
        self.threads.add(threading.get_ident())
        self.topk.append(num)
        return [Document(query, f"The king of {query} is {Index.KINGS[query]}")]


def question(word: str, *answers: str) -> Question:
    return Question(word, f"Who was king of {word}?", answers)


@pytest.fixture
def model(tokenizer: Any) -> Model:
    return Model(tokenizer)


@pytest.mark.asyncio
async def test_questions_are_answered_scored_and_kept_in_order(model: Model):
    questions = [question("Zhou", "wu", "King Wu"), question("Shang", "The Tang"), question("Xia", "Gun")]
    seen: list[Outcome] = []
    outcomes = await ReSearchPipeline(Config(), Index(), model).run(questions, seen.append)
    assert [outcome.question.id for outcome in outcomes] == ["Zhou", "Shang", "Xia"]
    assert [outcome.answer.prediction for outcome in outcomes] == ["Wu", "Tang", "Yu"]
    assert [outcome.score for outcome in outcomes] == [(1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]
    assert [[search.query for search in outcome.answer.searches] for outcome in outcomes] == [
        ["Zhou"],
        ["Shang"],
        ["Xia"],
    ]
    assert all(outcome.answer.failure is None for outcome in outcomes)
    assert sorted(outcome.question.id for outcome in seen) == ["Shang", "Xia", "Zhou"]
    first = outcomes[0].answer.episode
    assert first is not None
    assert list(first.prompt_ids) == prompt_token_ids(model.tokenizer, "Who was king of Zhou?")
    assert first.ended_by is EndReason.EOS
    assert first.format_fault is None


@pytest.mark.asyncio
async def test_what_fails_is_recorded_counts_as_wrong_and_stops_nothing(model: Model):
    questions = [question("Outage", "Wu"), question("Zhou", "Wu"), question("Crash", ""), question("Nowhere", "Wu")]
    outcomes = await ReSearchPipeline(Config(), Index(), model).run(questions)
    outage, fine, crash, nowhere = outcomes
    assert outage.answer.failure == "search failed: http://127.0.0.1:1/search cannot be reached"
    assert outage.answer.episode is not None  # how far it came
    assert crash.answer.failure == "RuntimeError: the model server is gone"
    assert nowhere.answer.failure == "KeyError: 'Nowhere'"
    assert [outcome.score.em for outcome in outcomes] == [0.0, 1.0, 0.0, 0.0]
    assert fine.answer.failure is None


@pytest.mark.asyncio
async def test_a_prompt_without_room_for_a_response_is_a_recorded_failure(model: Model):
    config = Config(config_dict={"generator_max_input_len": 20})
    (outcome,) = await ReSearchPipeline(config, Index(), model).run([question("Zhou", "Wu")])
    assert outcome.answer.failure is not None
    assert "generator_max_input_len=20" in outcome.answer.failure


@pytest.mark.asyncio
async def test_prompt_and_response_share_the_context(model: Model):
    prompt = prompt_token_ids(model.tokenizer, "Who was king of Zhou?")
    config = Config(config_dict={"generator_max_input_len": len(prompt) + 12})
    (outcome,) = await ReSearchPipeline(config, Index(), model).run([question("Zhou", "Wu")])
    assert outcome.answer.episode is not None
    assert len(outcome.answer.episode.response_ids) == 12
    assert outcome.answer.episode.ended_by is EndReason.LENGTH
    assert outcome.score.em == 0.0
    assert outcome.answer.failure is None  # the model's own doing


@pytest.mark.asyncio
@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (5, 5), (64, 30)])
async def test_concurrency_is_used_and_bounded(model: Model, concurrency: int, most: int):
    config = Config(config_dict={"concurrency": concurrency})
    await ReSearchPipeline(config, Index(), model).run([question("Zhou", "Wu")] * 30)
    assert model.most_in_flight == most


@pytest.mark.asyncio
async def test_a_local_retriever_searches_in_a_thread(model: Model):
    index = LocalIndex()
    config = Config(config_dict={"retrieval_topk": 3})
    (outcome,) = await ReSearchPipeline(config, index, model).run([question("Zhou", "Wu")])
    assert outcome.score.em == 1.0
    assert index.topk == [3]
    assert threading.get_ident() not in index.threads


@pytest.mark.asyncio
async def test_an_instruct_model_gets_its_own_template(model: Model):
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}Assistant:"
    try:
        pipeline = ReSearchPipeline(Config(config_dict={"apply_chat": True}), Index(), model)
        (outcome,) = await pipeline.run([question("Zhou", "Wu")])
    finally:
        model.tokenizer.chat_template = None
    assert outcome.score.em == 1.0
    assert outcome.answer.episode is not None
    prompt = model.tokenizer.decode(outcome.answer.episode.prompt_ids)
    assert prompt.startswith("The user asks a question")


def test_a_config_is_checked_when_the_pipeline_is_made(model: Model):
    with pytest.raises(UserError, match="concurrency: 0"):
        ReSearchPipeline(Config(config_dict={"concurrency": 0}), Index(), model)
    with pytest.raises(UserError, match="prompt_template_name"):
        ReSearchPipeline(Config(config_dict={"prompt_template_name": "qa"}), Index(), model)
    # Keys of other parts are theirs to check.
    ReSearchPipeline(Config(config_dict={"index_path": "x"}), Index(), model)


@pytest.mark.asyncio
async def test_cancelling_a_run_cancels_what_is_in_flight():
    class Sleeper(BasicPipeline):
        cancelled = 0

        async def answer(self, question: Question) -> Answer:  # noqa: ARG002
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return Answer("")

    pipeline = Sleeper(Config())
    run = asyncio.create_task(pipeline.run([question("Zhou", "Wu")] * 3))
    await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert pipeline.cancelled == 3


@pytest.mark.asyncio
async def test_a_failed_question_is_wrong_whatever_was_predicted_before_it_failed():
    class Interrupted(BasicPipeline):
        async def answer(self, question: Question) -> Answer:  # noqa: ARG002
            return Answer("Wu", failure="the model server aborted the request")

    (outcome,) = await Interrupted(Config()).run([question("Zhou", "Wu")])
    assert outcome.score == (0.0, 0.0, 0.0)
