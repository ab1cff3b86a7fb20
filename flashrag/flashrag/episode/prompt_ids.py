"""The token ids of a prompt, made by the same rules for training and evaluation, and for every method.

A base model continues plain text; an instruct model gets the same words through its own chat template.
A prompt begins as the tokenizer begins a text: once with a BOS, if it has one, whether the chat template writes it or
not. If the chat template takes no system message, the instructions begin the user message. No control token comes out
of a question, a passage or the words of a prompt (foreign.py); those of the chat template act.
Does not cover: the words of a prompt (prompts/).
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from flashrag.document import Document
from flashrag.episode.foreign import as_text, control_tokens, neutralize
from flashrag.errors import UserError
from flashrag.prompts import PROMPTS, SEARCH_R1_TEMPLATE, ChosenPrompt, Prompt, PromptTemplate, choose_prompt

Messages = list[dict[str, str]]

# They tell the model what to write, and that may be an added token (Qwen3 has <think>). In a file's words the same
# strings act.
_OWN_WORDS = "".join(template.words for template in PROMPTS.values())
_PROBE = PromptTemplate(system="INSTRUCTIONS", user="QUESTION").fill()
_DEFAULT = choose_prompt("qa_template")


def prompt_token_ids(
    tokenizer: Any, question: str, prompt: ChosenPrompt = _DEFAULT, apply_chat: bool = False
) -> list[int]:
    """Prompt ids of a search episode; an instruct model gets the prompt's instructions as its system message.

    `tokenizer` is a Hugging Face tokenizer. Raises `UserError` for `apply_chat` with a tokenizer that has no chat
    template, or one that refuses the conversation.
    """
    if prompt.own_name == SEARCH_R1_TEMPLATE:
        question = _as_search_r1_asks(tokenizer, question, apply_chat)
    return encode_prompt(tokenizer, prompt.template.fill(question=question), apply_chat)


def _as_search_r1_asks(tokenizer: Any, question: str, apply_chat: bool) -> str:
    if getattr(tokenizer, "chat_template", None) and not apply_chat:
        raise UserError(
            "the models of search-r1, also base models, are trained with a chat template if they have one, and this "
            "tokenizer has one; use apply_chat: true"
        )
    question = question.strip()
    return question if question.endswith("?") else f"{question}?"


def encode_prompt(tokenizer: Any, prompt: Prompt, apply_chat: bool) -> list[int]:
    """Ids of the prompt of any method; they end with the text that the model has written so far. Raises as above."""
    rules = _rules(tokenizer, apply_chat)
    documents = tuple(Document(d.id, neutralize(d.contents, rules.control_strings)) for d in prompt.documents)
    values = {name: as_text(value, rules.control_strings) for name, value in prompt.values.items()}
    return rules.encode(replace(prompt, documents=documents, values=values))


def prompt_note(tokenizer: Any, apply_chat: bool) -> str:
    """The unexpected place of the instructions; empty if they are where they should be. Raises as above."""
    fault = _rules(tokenizer, apply_chat).system_fault
    return f"the chat template {fault}, so the instructions begin the user message" if fault else ""


def prompt_rule(tokenizer: Any, apply_chat: bool) -> str:
    """How prompts are made with this tokenizer, in one line. Raises as above."""
    rules = _rules(tokenizer, apply_chat)
    ids = rules.encode(_PROBE)
    bos = rules.beginning or [token_id for token_id in ids[:1] if token_id == tokenizer.bos_token_id]
    begins = f"begins with BOS {''.join(tokenizer.convert_ids_to_tokens(bos))}" if bos else "begins without a BOS"
    if rules.chat_template is None:
        return f"{begins}; plain text without a chat template"
    fault = f"the user message (the template {rules.system_fault})" if rules.system_fault else "the system message"
    return f"{begins}; system role: in {fault}"


@dataclass(frozen=True, slots=True)
class _Rules:
    """How prompts are made with one tokenizer; `chat_template` is None for a base model."""

    tokenizer: Any
    chat_template: str | None
    beginning: list[int]
    control_strings: tuple[str, ...]
    strange_strings: tuple[str, ...]  # the control strings that our own prompts do not have
    system_fault: str  # empty if the chat template takes a system message

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of the prompt's text (base model), or of its messages and the beginning of the reply (instruct model).

        Texts from outside were made text before. This does it for the examples in a prompt, and where two texts meet.
        """
        if self.chat_template is None:
            text = as_text(prompt.text, self.strange_strings)
        else:
            messages = [
                {**message, "content": as_text(message["content"], self.strange_strings)} for message in prompt.messages
            ]
            messages = _in_user_message(messages) if self.system_fault else messages
            written = as_text(prompt.written, self.strange_strings)
            text = _rendered(self.tokenizer, self.chat_template, messages) + written
        # Not verbose: the caller checks whether a prompt is too long.
        ids = list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))
        return ids if ids[: len(self.beginning)] == self.beginning else [*self.beginning, *ids]


def _rules(tokenizer: Any, apply_chat: bool) -> _Rules:
    if not apply_chat:
        return _rules_of(tokenizer, None)
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "apply_chat=true, but the tokenizer has no chat template; use apply_chat=false for a base model, "
            "or give an instruct model"
        )
    try:
        chat_template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, none of them the default
        raise _refused(str(error)) from error
    return _rules_of(tokenizer, chat_template)


@lru_cache(maxsize=16)
def _rules_of(tokenizer: Any, chat_template: str | None) -> _Rules:
    strings = tuple(control_tokens(tokenizer).values())
    strange = tuple(string for string in strings if string not in _OWN_WORDS)
    fault = "" if chat_template is None else _system_fault(tokenizer, chat_template)
    return _Rules(tokenizer, chat_template, _beginning(tokenizer), strings, strange, fault)


def _beginning(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before a text."""
    whole, text = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    return list(whole[: next((at for at in range(len(whole)) if whole[at : at + len(text)] == text), 0)])


def _system_fault(tokenizer: Any, chat_template: str) -> str:
    """What the chat template does to a system message instead of rendering it; empty if it renders it.

    Raises `UserError` if it does not render the instructions in a user message either.
    """
    messages = _PROBE.messages
    try:
        rendered, fault = _rendered(tokenizer, chat_template, messages), "leaves a system message out"
    except UserError:
        rendered, fault = "", "refuses a system message"
    if messages[0]["content"] in rendered:
        fault = ""
    else:
        rendered = _rendered(tokenizer, chat_template, _in_user_message(messages))
    if lost := [message["content"] for message in messages if message["content"] not in rendered]:
        raise _refused(f"it leaves out the text {lost[-1]!r} of a user message")
    return fault


def _in_user_message(messages: Messages) -> Messages:
    return [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]


def _rendered(tokenizer: Any, chat_template: str, messages: Messages) -> str:
    options = {"chat_template": chat_template, "add_generation_prompt": True, "tokenize": False}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:  # a template is a program, which can raise anything
        raise _refused(f"{type(error).__name__}: {error}") from error


def _refused(reason: str) -> UserError:
    return UserError(
        "apply_chat=true, but the tokenizer's chat template does not render instructions and a question "
        f"({' '.join(reason.split())}); give a model whose template does, or use apply_chat=false for a base model"
    )
