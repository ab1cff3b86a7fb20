"""Naive RAG and zero-shot: their prompts word for word, one search and one request, or no search."""

import pytest

from flashrag.document import Passage
from flashrag.episode import Step, StepKind, steps

PASSAGES = (
    Passage("1", '"King Wu of Zhou"\nKing Wu was the first king of Zhou.', 1.0),
    Passage("2", '"Zhou dynasty"\nThe Zhou dynasty followed the Shang.', 0.5),
)
EXAMPLES = (
    "Question: Which river flows through Paris?\nAnswer: Seine\n\n"
    "Question: When was the Eiffel Tower completed?\nAnswer: 1889\n\n"
    "Question: Who wrote the novel Ulysses?\nAnswer: James Joyce\n\n"
)


@pytest.mark.asyncio
async def test_naive_rag_searches_with_the_question_and_answers_from_the_passages(make, server, index, question):
    server.replies = [" King Wu "]
    trajectory = await make("naive").answer(question)
    assert index.queries == ["Who was the first king of Zhou?"]
    (asked,) = server.asked
    assert asked.prompt == (
        "Read the documents below and answer the question from them. "
        "Reply with the answer alone, in as few words as possible.\n\n"
        "[1] King Wu of Zhou: King Wu was the first king of Zhou.\n"
        "[2] Zhou dynasty: The Zhou dynasty followed the Shang.\n\n"
        f"{EXAMPLES}Question: Who was the first king of Zhou?\n"
        "Answer:"
    )
    assert (asked.stop, asked.max_tokens) == (["\n"], 128)
    assert (trajectory.answer, trajectory.end_reason) == ("King Wu", "eos")
    assert tuple(steps(trajectory)) == (
        Step(StepKind.QUERY, "Who was the first king of Zhou?"),
        Step(StepKind.RESULT, "", PASSAGES),
        Step(StepKind.GENERATION, " King Wu "),
        Step(StepKind.ANSWER, "King Wu"),
    )
    prompt_tokens = len(server.tokenizer.encode(asked.prompt))
    usage = trajectory.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt_tokens, 7)
    assert (usage.generator_calls, usage.searches) == (1, 1)


@pytest.mark.asyncio
@pytest.mark.usefixtures("chat_template")
async def test_an_instruct_model_is_told_in_its_chat_template_and_shown_no_examples(make, server, index, question):
    server.replies = ["King Wu"]
    index.passages = {question.question: []}
    await make("naive", apply_chat=True).answer(question)
    (asked,) = server.asked
    assert asked.prompt == (
        "<|im_start|>system\nRead the documents below and answer the question from them. "
        "Reply with the answer alone, in as few words as possible.\n\n<|im_end|>\n"
        "<|im_start|>user\nQuestion: Who was the first king of Zhou?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert asked.stop is None
    assert asked.max_tokens == 8192 - len(server.tokenizer.encode(asked.prompt))  # it may think before it answers


@pytest.mark.asyncio
async def test_zero_shot_asks_the_model_alone(make, server, index, question):
    server.replies = ["King Wen"]
    trajectory = await make("zero-shot").answer(question)
    assert [asked.prompt for asked in server.asked] == [
        "Answer the question from what you know. Reply with the answer alone, in as few words as possible."
        f"\n\n{EXAMPLES}Question: Who was the first king of Zhou?\nAnswer:"
    ]
    assert index.queries == []
    assert [step.kind for step in steps(trajectory)] == ["generation", "answer"]
    assert (trajectory.answer, trajectory.usage.searches) == ("King Wen", 0)
