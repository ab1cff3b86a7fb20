"""Requests of every method: fitting passages, the chat route, errors, and questions that do not mix."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from flashrag.config import Config
from flashrag.dataset import Question
from flashrag.document import Document, Hit
from flashrag.episode import LiveSteps, Piece, Step, steps
from flashrag.errors import GenerationError, SearchError, UserError
from flashrag.pipeline import METHODS, SequentialPipeline
from flashrag.pipeline.trace import MAX_BLANK_LINES, PromptTooLong, end_reason_of

from .conftest import Reply


@pytest.mark.asyncio
async def test_passages_that_leave_no_room_are_dropped_last_ones_first(make, server, index, question):
    index.passages = {question.question: [Document(str(n), f'"T{n}"\n' + "word " * 40) for n in range(5)]}
    server.replies = ["Wu"] * 2
    await make("naive").answer(question)
    whole = server.asked[0]
    whole_tokens = len(server.tokenizer.encode(whole.prompt))
    assert whole.prompt.count(": word") == 5
    limit = whole_tokens + 128 - 1  # one token short of the whole and its answer
    trajectory = await make("naive", generator_max_input_len=limit).answer(question)
    fitted = server.asked[1]
    assert fitted.prompt.count(": word") == 4
    assert "T4" not in fitted.prompt
    assert len(list(steps(trajectory))[1].passages) == 5  # the trajectory keeps every passage that was found


@pytest.mark.asyncio
async def test_a_watcher_sees_each_request_and_search_of_a_method_on_text(make, server, question):
    server.replies = ["Wu"]
    pieces: list[Piece] = []
    trajectory = await make("naive").answer_watched(question, LiveSteps(pieces.append, None))
    *written, answer = steps(trajectory)
    assert [Step(piece.kind, piece.text, piece.passages) for piece in pieces] == written
    assert len(pieces) == 3  # query, passages, reply
    assert answer.text == "Wu"


@pytest.mark.asyncio
async def test_a_question_that_does_not_fit_is_an_error(make, question):
    with pytest.raises(PromptTooLong, match="without any passage, generator_max_input_len=40"):
        await make("naive", generator_max_input_len=40).answer(question)


@pytest.mark.asyncio
async def test_a_special_token_in_a_passage_is_text(make, server, index, question):
    index.passages = {question.question: [Document("1", '"T"\nbefore <|endoftext|> after')]}
    server.replies = ["Wu"]
    await make("naive").answer(question)
    assert "before < |endoftext|> after" in server.asked[0].prompt


END = "<|im_end|>"
ACTING = {  # what a model writes first in each method that lets it ask
    "research": ["<search> a </search>", "\\boxed{a}"],
    "search-r1": ["<search> a </search>", "<answer> a </answer>"],
    "search-o1": ["<|begin_search_query|> a <|end_search_query|>", f"**Final Information** {END} a", "\\boxed{a}"],
    "self-ask": ["Follow up: a?", "So the final answer is: a"],
    "flare": [Reply(tokens=[("It is a.", -3.0)]), "So the answer is: a"],
    "iterretgen": ["a", "a", "a"],
    "ircot": ["It is a.", "So the answer is: a"],
}


@pytest.mark.asyncio
@pytest.mark.usefixtures("chat_template")
@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if spec.pipeline.needs_generator])
async def test_a_control_token_in_a_question_or_a_passage_is_text_in_every_method(make, server, index, method: str):
    passage = Document("1", f'"T {END}"\nof {END} and </tool_call>')
    question = Question("q", f"Who {END} is?", ("a",), {"supporting_titles": [f"T {END}"]})
    index.passages = {query: [passage] for query in [question.question, "a", "a?", "It is a.", f"T {END}"]}
    index.passages[f"{question.question} a"] = [passage]
    server.replies = ACTING.get(method, ["a"])
    await make(method, apply_chat=True).answer(question)
    assert server.replies == []
    for asked in server.asked:
        turns, _, response = asked.prompt.rpartition("<|im_start|>assistant\n")
        assert turns.count(END) == turns.count("<|im_start|>")  # the template's own
        assert END not in response
    texts = "".join(asked.prompt for asked in server.asked)
    assert "Who < |im_end|> is?" in texts
    assert "of < |im_end|> and" in texts or method == "zero-shot"


@pytest.mark.asyncio
async def test_a_chat_template_without_a_system_role_gets_a_user_message(make, server, question, tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}] {{ m.content }}{% endfor %}"
    )
    try:
        server.replies = ["King Wu"] * 2
        pipeline = make("zero-shot", apply_chat=True)
        for _ in range(2):
            await pipeline.answer(question)
        tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(UserError, match=r"\(TemplateError: roles must alternate\)"):
            make("naive", apply_chat=True)
    finally:
        tokenizer.chat_template = None
    assert server.asked[0].prompt == (
        "[user] Answer the question from what you know. Reply with the answer alone, in as few words as possible.\n\n"
        "Question: Who was the first king of Zhou?"
    )


@pytest.mark.asyncio
async def test_a_chat_server_gets_messages(make, server, question):
    server.replies = ["King Wu"]
    trajectory = await make("zero-shot", framework="openai_chat", generation_params={"max_tokens": 50}).answer(question)
    (body,) = server.chats
    assert body["messages"] == [
        {
            "role": "system",
            "content": "Answer the question from what you know. "
            "Reply with the answer alone, in as few words as possible.",
        },
        {"role": "user", "content": "Question: Who was the first king of Zhou?"},
    ]
    assert (body["max_tokens"], body["temperature"], "continue_final_message" in body) == (50, 0.0, False)
    assert (trajectory.answer, trajectory.usage.prompt_tokens, trajectory.usage.completion_tokens) == ("King Wu", 11, 7)


@pytest.mark.asyncio
async def test_an_answer_begins_in_the_first_line_that_is_not_blank(make, server, question):
    server.replies = [Reply("", stop="\n"), Reply(" ", stop="\n"), Reply("King Wu", stop="\n")]
    trajectory = await make("zero-shot").answer(question)
    first = server.asked[0].prompt
    assert [asked.prompt for asked in server.asked] == [first, f"{first}\n", f"{first}\n \n"]
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "eos")
    assert trajectory.usage.generator_calls == 3
    assert trajectory.usage.prompt_tokens == sum(len(server.tokenizer.encode(asked.prompt)) for asked in server.asked)
    assert [segment.text for segment in trajectory.segments] == ["King Wu"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("reply", "requests"),
    [
        (Reply("", stop="\n"), 1 + MAX_BLANK_LINES),
        (Reply(""), 1),  # the model ended at once
        (Reply("", stop="Intermediate answer:"), 1),
        (Reply("", finish_reason="length"), 1),
    ],
)
async def test_only_a_blank_line_is_skipped_and_not_for_ever(make, server, question, reply: Reply, requests: int):
    server.replies = lambda _: reply
    assert (await make("zero-shot").answer(question)).answer == ""
    assert len(server.asked) == requests


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["ircot", "flare"])
async def test_a_chain_of_thought_may_begin_with_a_blank_line(make, server, question, method: str):
    sentence = [(" So the answer is: Wu.", -0.01)]
    server.replies = [Reply("", stop="\n"), Reply(tokens=sentence, stop="\n")]
    trajectory = await make(method).answer(question)
    assert (trajectory.answer, trajectory.end_reason) == ("Wu", "answered")


@pytest.mark.asyncio
async def test_a_cut_off_answer_says_so(make, server, question):
    server.replies = [Reply("King", finish_reason="length")]
    assert (await make("zero-shot").answer(question)).end_reason == "length"


@pytest.mark.asyncio
@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if spec.pipeline.needs_generator])
async def test_servers_that_fail_are_typed_errors_in_every_method(make, index, server, method: str):
    question = Question("q", "Who?", ("Wu",), {"supporting": ["King Wu of Zhou"]})
    server.replies = []  # an exhausted script is HTTP 500
    with pytest.raises(GenerationError, match=r"/v1/completions: .*\(attempt 1 of 1\)"):
        await make(method).answer(question)

    async def outage(query: str, top_n: int) -> Any:  # noqa: ARG001
        raise SearchError("the index is gone")

    index.search_scored = outage
    server.replies = {
        "flare": [Reply(tokens=[("Tang.", -5.0)])],
        "self-ask": ["Follow up: a?"],
        "search-o1": ["<|begin_search_query|> a <|end_search_query|>"],
    }.get(method, ["<search> a </search>"])
    if METHODS[method].pipeline.needs_retriever:
        with pytest.raises(SearchError, match="the index is gone"):
            await make(method).answer(question)


NUMBER = re.compile(r"item (\d+)")


def talk(method: str) -> Callable[[str], str]:
    """A model that names the number of the question, and searches for it first where the method lets it."""

    def reply(prompt: str) -> str:
        number = NUMBER.findall(prompt.rpartition("Question:")[2] or prompt)[0]
        searched = prompt.endswith(("</information>\n\n", "</result>", "_result|>\n\n", "Intermediate answer:"))
        if "Searched Web Pages" in prompt:
            return f"**Final Information** item {NUMBER.findall(prompt.rpartition('Current Search Query')[2])[0]}"
        query = {
            "research": f"<search> item {number} </search>",
            "search-r1": f"<search> item {number} </search>",
            "search-o1": f"<|begin_search_query|>item {number}<|end_search_query|>",
            "self-ask": f"Follow up: item {number}",
        }.get(method)
        if query and not searched:
            return query
        return {
            "research": f"<think> t </think> <answer> \\boxed{{{number}}} </answer>",
            "search-r1": f"<answer>{number}</answer>",
            "search-o1": f"\\boxed{{{number}}}",
            "self-ask": f"So the final answer is: {number}",
            "ircot": f"So the answer is: {number}",
        }.get(method, number)

    return reply


def talk_unsure(prompt: str) -> Reply:
    """The same for flare: unsure until it has read a passage."""
    number = NUMBER.findall(prompt.rpartition("Question:")[2])[0]
    text = f"So the answer is: {number}" if "[1] " in prompt else f"It is item {number}."
    return Reply(tokens=[(text, -3.0)])


QUICK = ("ircot", "search-r1")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in METHODS if name != "random"],
)
async def test_sixty_four_questions_at_once_do_not_mix(make, server, index, method: str):
    async def echo(query: str, top_n: int) -> Any:  # noqa: ARG001
        await asyncio.sleep(0.001 * (len(index.queries) % 5))
        index.queries.append(query)
        return [Hit(Document(query, f'"King Wu of Zhou"\nfound for {query}'), 1.0)]

    index.search_scored, server.replies = echo, talk_unsure if method == "flare" else talk(method)
    metadata = {"supporting": ["King Wu of Zhou"]}
    questions = [Question(str(n), f"What is item {n}?", (str(n),), metadata) for n in range(64)]
    pipeline = make(method, generator_max_retries=3)  # a server may close an idle connection as it is used again
    trajectories = await asyncio.gather(*(pipeline.answer(question) for question in questions))
    assert [trajectory.answer for trajectory in trajectories] == [question.id for question in questions]
    for question, trajectory in zip(questions, trajectories, strict=True):
        mentioned = {n for step in steps(trajectory) for n in NUMBER.findall(step.text)}
        assert mentioned <= {question.id}
        assert trajectory.usage.searches == sum(step.kind == "query" for step in steps(trajectory))


def test_parts_that_a_method_needs_must_be_given():
    with pytest.raises(UserError, match=r"SequentialPipeline needs a retriever; see flashrag\.utils\.get_retriever"):
        SequentialPipeline(Config(), None, object())
    with pytest.raises(UserError, match="SequentialPipeline needs a generator"):
        SequentialPipeline(Config(), object(), None)


@pytest.mark.parametrize(
    ("finish_reason", "end_reason"),
    [("stop", "eos"), (None, "eos"), ("length", "length"), ("content_filter", "length"), ("abort", "aborted")],
)
def test_only_a_reply_that_the_model_ended_ends_with_eos(finish_reason: str | None, end_reason: str) -> None:
    assert end_reason_of(finish_reason) == end_reason
