"""The token ids that a model starts from: written once, for the training agent loop and for the evaluation.

A base model continues plain text; an instruct model gets the same words through its own chat template.
Does not cover: the words of a prompt (prompts/).
"""

from typing import Any

from flashrag.errors import UserError
from flashrag.prompts import Prompt, chat_messages, render_prompt


def prompt_token_ids(
    tokenizer: Any, question: str, template_name: str = "qa_template", apply_chat: bool = False
) -> list[int]:
    """Ids that a search episode starts from; an instruct model gets the template's instructions as system message.

    A base model's are encoded without any token of the tokenizer's own. `tokenizer` is a Hugging Face tokenizer.
    Raises `UserError` for an unknown template, and for `apply_chat` with a tokenizer that has no chat template.
    """
    if not apply_chat:
        return list(tokenizer.encode(render_prompt(question, template_name), add_special_tokens=False))
    check_chat_template(tokenizer)
    # Transformers 5 would wrap the ids in a BatchEncoding, transformers 4 would not.
    ids = tokenizer.apply_chat_template(
        chat_messages(question, template_name), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def check_chat_template(tokenizer: Any) -> None:
    """Raise `UserError` unless the tokenizer has the chat template that `apply_chat` asks for."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "apply_chat=true, but the tokenizer has no chat template; use apply_chat=false for a base model, "
            "or give an instruct model"
        )


def encode_prompt(tokenizer: Any, prompt: Prompt, apply_chat: bool) -> list[int]:
    """Ids of any method's prompt, what the model has written so far at its end.

    A base model's begin as its tokenizer begins a text (some with a token of their own); a chat template says itself
    how a conversation begins. Raises `UserError` for `apply_chat` with a tokenizer that has no chat template.
    """
    # Not verbose: whether a prompt is too long is for the caller to find and mend.
    if not apply_chat:
        return list(tokenizer.encode(prompt.text, verbose=False))
    check_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text + prompt.written, add_special_tokens=False, verbose=False))
