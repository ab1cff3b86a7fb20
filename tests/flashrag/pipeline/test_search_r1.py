"""Search-R1: its tags, and the stop at the end of an answer."""

import pytest

from flashrag.dataset import Question
from flashrag.episode import steps
from flashrag.errors import UserError

PROMPT = (
    "Find the answer to a question. Think inside <think> and </think> before each step, and whenever you have read "
    "something new. If a fact is missing, write a search query inside <search> and </search>: what the search finds "
    "will follow between <information> and </information>. You may search several times. As soon as you are sure, "
    "write the answer and nothing else inside <answer> and </answer>, such as <answer> Lake Victoria </answer>.\n"
    "Question: Who was the first king of Zhou?\n"
)
SEARCH = "<think> Zhou? </think>\n<search> first king of Zhou </search>"
INFORMATION = (
    '\n\n<information>Doc 1(Title: "King Wu of Zhou") King Wu was the first king of Zhou.\n'
    'Doc 2(Title: "Zhou dynasty") The Zhou dynasty followed the Shang.</information>\n\n'
)


@pytest.mark.asyncio
async def test_an_episode_in_search_r1s_tags(make, server, index, question):
    server.replies = [SEARCH, "<think> Wu. </think> <answer> King Wu </answer>"]
    trajectory = await make("search-r1").answer(question)
    assert index.queries == ["first king of Zhou"]
    first, second = server.asked
    assert first.prompt == PROMPT
    assert second.prompt == PROMPT + SEARCH + INFORMATION
    assert first.stop == second.stop == ["</search>", "</answer>"]
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "answered")
    assert [(step.kind, step.text) for step in steps(trajectory)] == [
        ("think", "Zhou?"),
        ("query", "first king of Zhou"),
        ("result", INFORMATION.strip().removeprefix("<information>").removesuffix("</information>")),
        ("think", "Wu."),
        ("generation", "<answer> King Wu </answer>"),
        ("answer", "King Wu"),
    ]
    spliced = [segment.text for segment in trajectory.segments if segment.source == "result"]
    assert spliced == [INFORMATION]
    assert (trajectory.dialect, trajectory.format_valid) == ("search-r1", True)


@pytest.mark.asyncio
async def test_an_answer_without_a_block_is_none(make, server, question):
    server.replies = ["I do not know."]
    trajectory = await make("search-r1").answer(question)
    assert (trajectory.answer, trajectory.end_reason) == ("", "eos")


@pytest.mark.asyncio
@pytest.mark.usefixtures("chat_template")
async def test_its_models_want_their_chat_template_and_a_question_mark(make, server):
    with pytest.raises(UserError, match="use apply_chat: true"):
        make("search-r1")
    server.replies = ["<answer> a </answer>"]
    await make("search-r1", apply_chat=True).answer(Question("q", " who was first king of zhou ", ("Wu",)))
    assert server.asked[0].prompt.startswith("<|im_start|>user\nFind the answer to a question. Think")
    assert server.asked[0].prompt.endswith("Question: who was first king of zhou?\n<|im_end|>\n<|im_start|>assistant\n")
