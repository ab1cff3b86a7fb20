"""The token ids of a prompt, made in the same way for training and evaluation.

A base model continues plain text; an instruct model gets the same words through its own chat template.
Does not cover: the words of a prompt (prompts/).
"""

from typing import Any

from flashrag.errors import UserError
from flashrag.prompts import Prompt, chat_messages, render_prompt


def prompt_token_ids(
    tokenizer: Any, question: str, template_name: str = "qa_template", apply_chat: bool = False
) -> list[int]:
    """Prompt ids of a search episode; an instruct model gets the template's instructions as its system message.

    For a base model, the tokenizer adds no special tokens. `tokenizer` is a Hugging Face tokenizer.
    Raises `UserError` for an unknown template, and for `apply_chat` with a tokenizer that has no chat template.
    """
    if not apply_chat:
        return list(tokenizer.encode(render_prompt(question, template_name), add_special_tokens=False))
    check_chat_template(tokenizer)
    # By default, transformers 5 wraps the ids in a BatchEncoding and transformers 4 does not.
    ids = tokenizer.apply_chat_template(
        chat_messages(question, template_name), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def check_chat_template(tokenizer: Any) -> None:
    """Raise `UserError` unless the tokenizer has the chat template that `apply_chat` needs."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "apply_chat=true, but the tokenizer has no chat template; use apply_chat=false for a base model, "
            "or give an instruct model"
        )


def encode_prompt(tokenizer: Any, prompt: Prompt, apply_chat: bool) -> list[int]:
    """Ids of the prompt of any method; they end with the text that the model has written so far.

    For a base model, the tokenizer adds its own special tokens, if any; a chat template, which the tokenizer has where
    `apply_chat` is true, adds its own.
    """
    # Not verbose: the caller checks whether a prompt is too long.
    if not apply_chat:
        return list(tokenizer.encode(prompt.text, verbose=False))
    text = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text + prompt.written, add_special_tokens=False, verbose=False))
