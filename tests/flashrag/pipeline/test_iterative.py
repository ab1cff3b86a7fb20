"""Iter-RetGen: each turn's query is the question and the answer before; passages are replaced, not collected."""

import pytest

from flashrag.document import Document


@pytest.mark.asyncio
async def test_each_turn_searches_with_the_question_and_the_answer_before(make, server, index, question):
    server.replies = ["King Tang", "King Wen", "King Wu"]
    index.passages = {f"{question.question} King Tang": [Document("3", '"Shang"\nTang was of Shang.')]}
    trajectory = await make("iterretgen").answer(question)
    assert index.queries == [
        "Who was the first king of Zhou?",
        "Who was the first king of Zhou? King Tang",
        "Who was the first king of Zhou? King Wen",
    ]
    first, second, third = (asked.prompt for asked in server.asked)
    assert first == third  # the answer before is in the query alone
    assert "possible.\n\n[1] Shang: Tang was of Shang.\n\nQuestion: " in second
    assert (trajectory.answer, trajectory.usage.searches, trajectory.usage.generator_calls) == ("King Wu", 3, 3)


@pytest.mark.asyncio
async def test_the_number_of_turns_is_a_setting(make, server, index, question):
    server.replies = [""]
    assert (await make("iterretgen", iter_num=1).answer(question)).answer == ""
    assert index.queries == [question.question]


@pytest.mark.asyncio
async def test_a_long_answer_does_not_make_a_query_that_the_server_refuses(make, server, index, question):
    server.replies = ["x " * 2000, "King Wu"]
    await make("iterretgen", iter_num=2).answer(question)
    assert len(index.queries[1]) == 1000
    assert index.queries[1].startswith("Who was the first king of Zhou? x x ")
