"""The prompts of every method, a module each; the published project's own are in research.py.

template.py   what a prompt is made of, and how a base and an instruct model are given it
question.py   a question alone, or with passages (naive, zero-shot, iterretgen, oracle-passages)
reasoning.py  a chain of thought, with or without passages (ircot, flare)
self_ask.py   follow-up questions
search_o1.py  agentic search, and the reading of what it found
search_r1.py  the prompt that Search-R1's models are trained with
"""

from flashrag.prompts.research import (
    INSTRUCTIONS,
    PROMPT_TEMPLATES,
    PYTHON_TEMPLATE,
    QA_TEMPLATE,
    chat_messages,
    check_template_name,
    render_prompt,
)
from flashrag.prompts.template import Prompt, PromptTemplate

__all__ = [
    "INSTRUCTIONS",
    "PROMPT_TEMPLATES",
    "PYTHON_TEMPLATE",
    "QA_TEMPLATE",
    "Prompt",
    "PromptTemplate",
    "chat_messages",
    "check_template_name",
    "render_prompt",
]
