"""IRCoT: one sentence, one search, until the chain says its answer; passages are collected without repeating any."""

import pytest

from flashrag.document import Document

SHANG = Document("3", '"Shang dynasty"\nKing Tang founded it.')
PROMPT = (
    "Answer the question by reasoning in short sentences, each of which states one fact. "
    'End with a sentence that starts with "So the answer is:" and holds nothing but the answer. '
    "Use the passages where they help.\n\n"
    "Question: In which present-day country was the composer of the opera Bluebeard's Castle born?\n"
    "Answer: The opera Bluebeard's Castle was composed by Béla Bartók. Béla Bartók was born in Nagyszentmiklós. "
    "Nagyszentmiklós is today the town of Sânnicolau Mare in Romania. So the answer is: Romania.\n\n"
    "[1] King Wu of Zhou: King Wu was the first king of Zhou.\n\n"
    "[2] Zhou dynasty: The Zhou dynasty followed the Shang.\n\n"
)


@pytest.mark.asyncio
async def test_a_search_after_each_sentence_until_the_answer(make, server, index, question):
    server.replies = [
        " The Zhou dynasty followed the Shang. It was long. So the answer is: Nobody.",  # its first sentence counts
        " Its first king was Wu, son of Wen.",
        " So the answer is: King Wu.",
    ]
    index.passages = {"The Zhou dynasty followed the Shang.": [Document("1", "again"), SHANG]}
    trajectory = await make("ircot").answer(question)
    assert index.queries == [
        "Who was the first king of Zhou?",
        "The Zhou dynasty followed the Shang.",
        "Its first king was Wu, son of Wen.",
    ]
    first, second, third = server.asked
    asks = "Question: Who was the first king of Zhou?\nAnswer:"
    with_shang = f"{PROMPT}[3] Shang dynasty: King Tang founded it.\n\n{asks}"
    assert first.prompt == f"{PROMPT}{asks}"
    assert second.prompt == f"{with_shang} The Zhou dynasty followed the Shang."
    assert third.prompt == f"{with_shang} The Zhou dynasty followed the Shang. Its first king was Wu, son of Wen."
    assert {(tuple(asked.stop), asked.max_tokens) for asked in server.asked} == {(("\n",), 128)}
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "answered")


@pytest.mark.asyncio
async def test_out_of_rounds_the_answer_is_asked_for_without_another_search(make, server, index, question):
    server.replies = [" Zhou is old.", " It had kings.", " King Wu. He was wise."]
    trajectory = await make("ircot", max_iterations=2).answer(question)
    assert index.queries == ["Who was the first king of Zhou?", "Zhou is old."]
    assert server.asked[-1].prompt.endswith("Zhou?\nAnswer: Zhou is old. It had kings. So the answer is:")
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "iterations")


@pytest.mark.asyncio
async def test_a_model_with_nothing_to_say_is_asked_for_the_answer(make, server, index, question):
    server.replies = ["", "Wu"]
    trajectory = await make("ircot").answer(question)
    assert (trajectory.answer, index.queries) == ("Wu", [question.question])


@pytest.mark.asyncio
async def test_at_most_fifteen_passages_are_shown(make, server, index, question):
    server.replies = [*(f" Fact {n}." for n in range(4)), " The answer is Wu."]
    for n in range(4):
        index.passages[f"Fact {n}."] = [Document(f"{n}-{m}", f'"T{n}{m}"\nx') for m in range(5)]
    await make("ircot").answer(question)
    shown = server.asked[-1].prompt.count("]")
    assert shown == 15
    assert "] T22: " in server.asked[-1].prompt  # 2 + 5 + 5 + 3
    assert "] T23: " not in server.asked[-1].prompt
