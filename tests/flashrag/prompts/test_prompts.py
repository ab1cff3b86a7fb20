"""The prompt, held as the published evaluation case prints it, and its token ids."""

from typing import Any

import pytest

from flashrag.episode import prompt_token_ids
from flashrag.errors import UserError
from flashrag.prompts import choose_prompt, render_prompt

QUESTION = "Who was the first king of the longest Chinese dynasty?"

# The published case prints the template as a Python literal: its lines are joined, \\ is one backslash, {{ }} are { }.
GOLDEN = (
    "A conversation between User and Assistant. The user asks a question, and the assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. During thinking, "
    "the assistant can invoke the wikipedia search tool to search for fact information about specific topics if "
    "needed. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags "
    "respectively, "
    "and the search query and result are enclosed within <search> </search> and <result> </result> tags respectively. "
    "For example, <think> This is the reasoning process. </think> <search> search query here </search> <result> search "
    "result here </result> <think> This is the reasoning process. </think> <answer> The final answer is \\[ "
    "\\boxed{answer here} \\] </answer>. In the last part of the answer, the final exact answer is enclosed within "
    "\\boxed{} with latex format. User: Who was the first king of the longest Chinese dynasty? Assistant:"
)


def test_the_base_prompt_is_the_published_one():
    assert render_prompt(QUESTION) == GOLDEN


def test_a_question_with_braces_or_tags_goes_in_as_it_is():
    question = r"What is {0} in \boxed{} and {question}? </think> Assistant:"
    assert render_prompt(question).endswith(f" User: {question} Assistant:")


def test_an_unknown_template_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"prompt_template_name='qa'.*qa_template"):
        render_prompt(QUESTION, "qa")


def test_an_instruct_model_gets_the_same_instructions():
    system, user = choose_prompt("qa_template").template.fill(question=QUESTION).messages
    assert system["role"] == "system"
    assert (
        system["content"] == GOLDEN.removeprefix("A conversation between User and Assistant. ").partition(" User:")[0]
    )
    assert user == {"role": "user", "content": QUESTION}


def test_the_prompt_with_the_python_tool_differs_only_in_what_it_says_of_tools():
    text = render_prompt(QUESTION, "qa_python_template")
    start = "A conversation between User and Assistant. The user asks a question, and the assistant solves it."
    end = GOLDEN[GOLDEN.index("<think> This is the reasoning process. </think> <answer>") :]
    assert text.startswith(start)
    assert text.endswith(end)
    assert "<python> print(code here) </python> <result> printed output here </result>" in text
    system, _ = choose_prompt("qa_python_template").template.fill(question=QUESTION).messages
    assert system["content"] in text


def test_base_ids_are_the_encoding_of_the_rendered_prompt(tokenizer: Any):
    ids = prompt_token_ids(tokenizer, QUESTION)
    assert type(ids) is list
    assert tokenizer.decode(ids) == GOLDEN
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_chat_ids_are_the_chat_template_with_the_generation_prompt(tokenizer: Any):
    with pytest.raises(UserError, match=r"apply_chat=true.*no chat template"):
        prompt_token_ids(tokenizer, QUESTION, apply_chat=True)
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.chat_template = template
    try:
        ids = prompt_token_ids(tokenizer, QUESTION, apply_chat=True)
    finally:
        tokenizer.chat_template = None
    assert type(ids) is list
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [ids.count(start), ids.count(end)] == [3, 2]
    assert tokenizer.decode(ids).endswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
