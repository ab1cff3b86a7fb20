"""Self-Ask: a follow-up question is searched for, its passages come before the question, the model answers it."""

import pytest

from flashrag.prompts import BASELINES

STOPS = ["Intermediate answer:", "\nQuestion:"]
INSTRUCTION = "Split the question into simpler ones and answer them one after the other, as in these examples.\n\n"
EXAMPLES = BASELINES["self_ask"].system.removeprefix(INSTRUCTION)
CONTEXTS = (
    "[1] King Wu of Zhou: King Wu was the first king of Zhou.\n[2] Zhou dynasty: The Zhou dynasty followed the Shang."
)
ASKS = "\nQuestion: Who was the first king of Zhou?\nAre follow up questions needed here:"


@pytest.mark.asyncio
async def test_each_follow_up_question_is_searched_for(make, server, index, question):
    server.replies = [
        " Yes.\nFollow up: What came after the Shang?\n",
        " Zhou came after it.\nFollow up: Who ruled Zhou first?\n",
        " King Wu ruled it first.\nSo the final answer is: King Wu",
    ]
    index.passages = {"Who ruled Zhou first?": []}
    trajectory = await make("self-ask").answer(question)
    assert index.queries == ["What came after the Shang?", "Who ruled Zhou first?"]
    first, second, third = server.asked
    assert first.prompt == f"{INSTRUCTION}{EXAMPLES}\n\n{ASKS}"
    asked_once = " Yes.\nFollow up: What came after the Shang?\nIntermediate answer:"
    assert second.prompt == f"{INSTRUCTION}{EXAMPLES}\n\n{CONTEXTS}{ASKS}{asked_once}"
    asked_twice = f"{asked_once} Zhou came after it.\nFollow up: Who ruled Zhou first?\nIntermediate answer:"
    assert third.prompt == f"{INSTRUCTION}{EXAMPLES}\n\n{ASKS}{asked_twice}"
    assert {tuple(asked.stop) for asked in server.asked} == {tuple(STOPS)}
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "answered")
    assert EXAMPLES.count("Question: ") == 3


@pytest.mark.asyncio
async def test_a_question_that_needs_no_follow_up_is_answered_without_a_search(make, server, index, question):
    server.replies = [" No.\nSo the final answer is: King Wu.\n"]
    trajectory = await make("self-ask").answer(question)
    assert (trajectory.answer, index.queries) == ("King Wu", [])


@pytest.mark.asyncio
async def test_out_of_rounds_or_questions_the_answer_is_asked_for(make, server, index, question):
    server.replies = [" Yes.\nFollow up: a?\n", " King Wu\n"]
    trajectory = await make("self-ask", max_iterations=1).answer(question)
    assert server.asked[-1].prompt.endswith("Follow up: a?\nIntermediate answer:\nSo the final answer is:")
    assert (trajectory.answer, trajectory.end_reason, index.queries) == ("King Wu", "iterations", ["a?"])
    server.replies = ["", "Wu"]
    assert (await make("self-ask").answer(question)).answer == "Wu"
    assert server.asked[-1].prompt.endswith("needed here: So the final answer is:")
