"""The token ids that an episode starts from: written once, for the training agent loop and for the evaluation.

A base model continues the rendered template, encoded without any token of the tokenizer's own; an instruct model gets
the same instructions through its own chat template. Does not cover: the words of the prompt (prompts.py).
"""

from typing import Any

from flashrag.errors import UserError
from flashrag.prompts import chat_messages, render_prompt


def prompt_token_ids(
    tokenizer: Any, question: str, template_name: str = "qa_template", apply_chat: bool = False
) -> list[int]:
    """Ids of the prompt for one question; `template_name` is the base model's and unused when `apply_chat` is true.

    `tokenizer` is a Hugging Face tokenizer. Raises `UserError` for an unknown template, and for `apply_chat` with a
    tokenizer that has no chat template.
    """
    if not apply_chat:
        return list(tokenizer.encode(render_prompt(question, template_name), add_special_tokens=False))
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "apply_chat=true, but the tokenizer has no chat template; use apply_chat=false for a base model, "
            "or give an instruct model"
        )
    # Transformers 5 would wrap the ids in a BatchEncoding, transformers 4 would not.
    ids = tokenizer.apply_chat_template(
        chat_messages(question), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)
