"""FLARE: the log-probabilities of the next sentence decide whether it is searched for, and what the query is."""

import math

import pytest

from flashrag.episode import steps
from flashrag.errors import UserError

from .conftest import Reply

ASKS = "Question: Who was the first king of Zhou?\nAnswer:"


def sentence(*tokens: tuple[str, float]) -> Reply:
    """A reply of tokens with their probabilities."""
    return Reply(tokens=[(text, math.log(probability)) for text, probability in tokens])


SURE = sentence((" Zhou", 0.9), (" is", 0.99), (" old", 0.8), (".", 0.95))
ANSWER = sentence((" So the answer is:", 0.99), (" King Wu", 0.9), (".", 0.99))


@pytest.mark.asyncio
async def test_a_confident_sentence_does_not_search(make, server, index, question):
    server.replies = [SURE, ANSWER]
    trajectory = await make("flare").answer(question)
    assert index.queries == []
    assert [asked.logprobs for asked in server.asked] == [1, 1]
    assert {asked.max_tokens for asked in server.asked} == {64}
    assert server.asked[0].prompt.endswith(f"So the answer is: Romania.\n\n{ASKS}")
    assert server.asked[1].prompt.endswith(f"So the answer is: Romania.\n\n{ASKS} Zhou is old.")
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "answered")


@pytest.mark.asyncio
async def test_an_unsure_sentence_is_searched_for_without_its_unlikely_tokens_and_written_again(
    make, server, index, question
):
    # 0.7 is below 0.8: unsure. 0.3 is below 0.4: left out of the query; 0.7 is not.
    unsure = sentence((" Zhou", 0.9), (" was", 0.7), (" ruled by", 0.95), (" Tang", 0.3), (".", 0.9))
    server.replies = [unsure, " Zhou was ruled by Wu. And so on.", ANSWER]
    trajectory = await make("flare").answer(question)
    assert index.queries == ["Zhou was ruled by."]
    draft, again, last = server.asked
    assert "[1]" not in draft.prompt
    assert "[2] Zhou dynasty: The Zhou dynasty followed the Shang.\n\nQuestion: Who" in again.prompt
    assert (again.logprobs, again.prompt.endswith(ASKS)) == (None, True)
    assert last.prompt.endswith(f"{ASKS} Zhou was ruled by Wu.")
    assert "[1]" not in last.prompt  # the next sentence is first tried without passages again
    assert [step.kind for step in steps(trajectory)] == [
        "generation", "query", "result", "generation", "generation", "answer",
    ]  # fmt: skip
    assert (trajectory.answer, trajectory.usage.searches) == ("King Wu", 1)


@pytest.mark.asyncio
async def test_only_the_first_sentence_counts(make, server, index, question):
    both = Reply(tokens=[*SURE.tokens, (" Tang", math.log(0.01)), (" too", -0.1), (".", -0.1)])
    server.replies = [both, ANSWER]
    await make("flare").answer(question)
    assert index.queries == []
    assert server.asked[1].prompt.endswith(" Zhou is old.")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("values", "queries"),
    [
        ({"flare_threshold": 0.2}, []),
        ({"flare_mask_threshold": 0.0}, ["Tang did."]),  # nothing masked: the sentence itself
        ({"flare_mask_threshold": 1.0}, ["Who was the first king of Zhou?"]),  # everything: the question
    ],
)
async def test_thresholds_are_settings(make, server, index, question, values, queries):
    draft = sentence((" Tang", 0.3), (" did", 0.9), (".", 0.9))
    server.replies = [draft, *([" Wu did."] if queries else []), ANSWER]
    await make("flare", **values).answer(question)
    assert index.queries == queries


@pytest.mark.asyncio
async def test_a_chain_without_an_answer_is_asked_for_it_with_the_passages_found_last(make, server, question):
    cued = f"{ASKS} Zhou is old. So the answer is:"
    server.replies = [SURE, Reply("", finish_reason="stop"), " King Wu. He was"]
    trajectory = await make("flare").answer(question)
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "iterations")
    assert server.asked[-1].prompt.endswith(cued)
    assert "[1]" not in server.asked[-1].prompt
    unsure = sentence((" Tang", 0.3), (".", 0.9))
    server.replies = [unsure, " Zhou is old.", " King Wu."]
    trajectory = await make("flare", max_iterations=1).answer(question)
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "iterations")
    assert server.asked[-1].prompt.endswith(cued)
    assert "[2] Zhou dynasty: The Zhou dynasty followed the Shang.\n\nQuestion: Who" in server.asked[-1].prompt


@pytest.mark.asyncio
async def test_a_server_without_log_probabilities_is_refused(make, server, question):
    server.replies = [" Zhou is old."]
    with pytest.raises(UserError, match=r"flare needs the log-probabilities .* returned none"):
        await make("flare").answer(question)


@pytest.mark.asyncio
async def test_the_chat_route_has_log_probabilities_too(make, server, index, question):
    server.replies = [SURE, sentence(("So", 0.5), (" the answer is: Wen.", 0.9)), "So the answer is: King Wu."]
    trajectory = await make("flare", framework="openai_chat").answer(question)
    assert index.queries == ["So the answer is: Wen."]
    assert [body.get("logprobs") for body in server.chats] == [True, True, None]
    assert [message["role"] for message in server.chats[0]["messages"]] == ["system", "user"]
    assert server.chats[1]["messages"][-1] == {"role": "assistant", "content": "Zhou is old."}
    assert server.chats[1]["continue_final_message"] is True
    assert trajectory.answer == "King Wu"
    assert trajectory.usage.prompt_tokens == 3 * 11  # as the server counts them
