"""The rules of a prompt: one BOS, the system role, and what a chat template may refuse."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flashrag.document import Document
from flashrag.episode import encode_prompt, prompt_note, prompt_rule, prompt_token_ids
from flashrag.errors import UserError
from flashrag.prompts import BASELINES, choose_prompt, render_prompt
from tests.tokenizers import PUBLISHED, Tokenizers

QUESTION = "Who was the first king of Zhou?"
INSTRUCTIONS = choose_prompt("qa_template").template.fill(question=QUESTION).messages[0]["content"]
# Gemma 2's.
REFUSES_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
LEAVES_SYSTEM_OUT = "{% for m in messages if m.role == 'user' %}[user] {{ m.content }}\n{% endfor %}[assistant]"

MakeTokenizer = Callable[..., Any]


@pytest.fixture
def make(tokenizer: Any) -> Iterator[MakeTokenizer]:
    """The tokenizer with a pattern for whole texts, such as "<s> $A", and a chat template."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    def made(pattern: str = "$A", chat_template: str | dict[str, str] | None = None) -> Any:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        specials = ["<s>", "</s>", "[gMASK]", "<sop>"]
        backend.add_special_tokens(specials)
        ids = [(name, backend.token_to_id(name)) for name in specials]
        backend.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=ids)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=chat_template
        )

    yield made


def prompts(tokenizer: Any, *, apply_chat: bool) -> dict[str, list[int]]:
    """The prompt of every method."""
    made = {"research": prompt_token_ids(tokenizer, QUESTION, apply_chat=apply_chat)}
    for method, template in BASELINES.items():
        values = {"question": QUESTION, "max_searches": "3", "reasoning": "I think.", "query": "king"}
        prompt = template.fill((Document("1", '"Zhou"\nA dynasty.'),), "King", **values)
        made[method] = encode_prompt(tokenizer, prompt, apply_chat)
    return made


@pytest.mark.parametrize("pattern", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("template", [None, TURNS, "{{ bos_token }}" + TURNS, REFUSES_SYSTEM])
def test_every_prompt_begins_with_the_bos_once_and_ends_in_text(make: MakeTokenizer, pattern: str, template: str):
    tokenizer = make(pattern, template)
    for method, ids in prompts(tokenizer, apply_chat=template is not None).items():
        assert ids[0] == tokenizer.bos_token_id, method
        assert ids.count(tokenizer.bos_token_id) == 1, method
        assert ids[-1] != tokenizer.eos_token_id, method


def test_a_base_prompt_is_the_text_as_the_tokenizer_begins_one(make: MakeTokenizer):
    with_bos, without = make("<s> $A"), make()
    assert prompt_token_ids(with_bos, QUESTION) == with_bos.encode(render_prompt(QUESTION))
    assert prompt_token_ids(without, QUESTION) == without.encode(render_prompt(QUESTION))
    assert without.bos_token_id not in prompt_token_ids(without, QUESTION)
    two = make("[gMASK] <sop> $A")  # GLM's
    assert two.decode(prompt_token_ids(two, QUESTION)).startswith("[gMASK]<sop>A conversation")


@pytest.mark.parametrize(
    ("template", "fault"),
    [(REFUSES_SYSTEM, "refuses a system message"), (LEAVES_SYSTEM_OUT, "leaves a system message out")],
)
def test_instructions_go_into_the_user_message_where_no_system_message_goes(
    make: MakeTokenizer, template: str, fault: str
):
    tokenizer = make("<s> $A", template)
    note = prompt_note(tokenizer, apply_chat=True)
    assert note == f"the chat template {fault}, so the instructions begin the user message"
    text = tokenizer.decode(prompt_token_ids(tokenizer, QUESTION, apply_chat=True))
    assert f"{INSTRUCTIONS}\n\n{QUESTION}" in text
    assert text.count("user") == INSTRUCTIONS.count("user") + 1
    for method, ids in prompts(tokenizer, apply_chat=True).items():
        words = BASELINES[method].system.partition("{passages}")[0] if method in BASELINES else INSTRUCTIONS
        assert words in tokenizer.decode(ids), method


def test_a_template_that_takes_a_system_message_gets_one(make: MakeTokenizer):
    tokenizer = make("$A", TURNS)
    assert prompt_note(tokenizer, apply_chat=True) == prompt_note(tokenizer, apply_chat=False) == ""
    text = tokenizer.decode(prompt_token_ids(tokenizer, QUESTION, apply_chat=True))
    assert text == f"[system] {INSTRUCTIONS}\n[user] {QUESTION}\n[assistant]"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ raise_exception('Roles must alternate\nuser/assistant') }}", "TemplateError: Roles must alternate user/"),
        ("{% for m in messages %}{{ m.content }", "TemplateSyntaxError"),
        ("{{ messages[0].content.text }}", "leaves out the text 'QUESTION'"),
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", "leaves out"),
        ("{{ messages[0].nothing.text }}", "UndefinedError"),
        ({"tool_use": TURNS, "rag": TURNS}, "multiple chat templates with no default"),
    ],
)
def test_any_other_refusal_is_one_line(make: MakeTokenizer, template: Any, reason: str):
    tokenizer = make("$A", template)
    for attempt in (prompt_note, prompt_rule, lambda t, chat: prompt_token_ids(t, QUESTION, apply_chat=chat)):
        with pytest.raises(UserError, match="apply_chat=true, but the tokenizer") as caught:
            attempt(tokenizer, True)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_template_that_refuses_only_some_prompts_says_so_in_one_line(make: MakeTokenizer):
    needs_system = "{% if messages[0].role != 'system' %}{{ raise_exception('No system') }}{% endif %}" + TURNS
    tokenizer = make("$A", needs_system)
    assert prompt_token_ids(tokenizer, QUESTION, apply_chat=True)
    with pytest.raises(UserError, match="TemplateError: No system"):
        encode_prompt(tokenizer, BASELINES["search_o1"].fill(question=QUESTION, max_searches="3"), apply_chat=True)


def test_the_default_of_several_templates_is_used(make: MakeTokenizer):
    tokenizer = make("$A", {"default": TURNS, "tool_use": REFUSES_SYSTEM})
    assert tokenizer.decode(prompt_token_ids(tokenizer, QUESTION, apply_chat=True)).startswith("[system] ")


@pytest.mark.parametrize(
    ("pattern", "template", "rule"),
    [
        ("$A", None, "begins without a BOS; plain text without a chat template"),
        ("<s> $A", None, "begins with BOS <s>; plain text without a chat template"),
        ("[gMASK] <sop> $A", None, "begins with BOS [gMASK]<sop>; plain text without a chat template"),
        ("$A", TURNS, "begins without a BOS; system role: in the system message"),
        ("<s> $A", TURNS, "begins with BOS <s>; system role: in the system message"),
        (
            "$A",
            REFUSES_SYSTEM,
            "begins with BOS <s>; system role: in the user message (the template refuses a system message)",
        ),
        (
            "<s> $A",
            LEAVES_SYSTEM_OUT,
            "begins with BOS <s>; system role: in the user message (the template leaves a system message out)",
        ),
    ],
)
def test_the_rule_in_one_line(make: MakeTokenizer, pattern: str, template: str | None, rule: str):
    assert prompt_rule(make(pattern, template), template is not None) == rule


# The BOS of a prompt and of a chat; None for no chat template. DeepSeek's writes what its tokenizer does not.
BEGINNINGS = {
    "qwen2.5": ("", ""),
    "qwen3": ("", ""),
    "gemma-3": ("<bos>", "<bos>"),
    "llama-3.1": ("<|begin_of_text|>", "<|begin_of_text|>"),
    "deepseek-v3": ("", "<｜begin▁of▁sentence｜>"),
    "gpt-oss": ("", None),
    "smollm2": ("", "<|im_start|>"),  # which begins every message
}


@pytest.mark.parametrize("apply_chat", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_of_published_models_begin_as_theirs_do(tokenizers: Tokenizers, name: str, apply_chat: bool):
    tokenizer = tokenizers[name]
    bos = BEGINNINGS[name][apply_chat]
    if bos is None:
        with pytest.raises(UserError, match="the tokenizer has no chat template"):
            prompts(tokenizer, apply_chat=apply_chat)
        return
    begins = f"begins with BOS {bos};" if bos else "begins without a BOS;"
    assert prompt_rule(tokenizer, apply_chat).startswith(begins)
    for method, ids in prompts(tokenizer, apply_chat=apply_chat).items():
        assert ids[:1] == [tokenizer.bos_token_id] if bos else tokenizer.bos_token_id not in ids, method
        assert tokenizer.bos_token_id not in ids[1:] or bos == "<|im_start|>", method
        assert ids[-1] not in (tokenizer.eos_token_id, tokenizer.pad_token_id), method
