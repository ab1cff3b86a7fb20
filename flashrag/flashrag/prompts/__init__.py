"""The prompts of every method.

template.py     the parts of a prompt, and its form for base and instruct models
baselines.yaml  the prompts of the methods that ReSearch is compared with, and their sources
research.py     the published project's prompts, by name; research.yaml has their words
"""

from flashrag.prompts.research import (
    INSTRUCTIONS_OF,
    PYTHON_TEMPLATE,
    SEARCH_R1_TEMPLATE,
    chat_messages,
    check_template_name,
    render_prompt,
)
from flashrag.prompts.template import BASELINES, Prompt, PromptTemplate

__all__ = [
    "BASELINES",
    "INSTRUCTIONS_OF",
    "PYTHON_TEMPLATE",
    "SEARCH_R1_TEMPLATE",
    "Prompt",
    "PromptTemplate",
    "chat_messages",
    "check_template_name",
    "render_prompt",
]
