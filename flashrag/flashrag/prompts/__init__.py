"""The prompts of every method.

template.py   the parts of a prompt, and its form for base and instruct models
research.py   the published project's prompts, by name
baselines.py  the prompts of the methods that ReSearch is compared with
"""

from flashrag.prompts.baselines import (
    AGENT,
    ANSWER_CUE,
    FINAL_ANSWER,
    FINAL_INFORMATION,
    FOLLOW_UP,
    INTERMEDIATE_ANSWER,
    REASON_IN_DOCUMENTS,
    REASONING,
    REASONING_WITH_PASSAGES,
    SEARCH_R1_PROMPT,
    SELF_ASK,
    WITH_PASSAGES,
    WITHOUT_PASSAGES,
)
from flashrag.prompts.research import (
    PYTHON_TEMPLATE,
    chat_messages,
    check_template_name,
    render_prompt,
)
from flashrag.prompts.template import Prompt, PromptTemplate

__all__ = [
    "AGENT",
    "ANSWER_CUE",
    "FINAL_ANSWER",
    "FINAL_INFORMATION",
    "FOLLOW_UP",
    "INTERMEDIATE_ANSWER",
    "PYTHON_TEMPLATE",
    "REASONING",
    "REASONING_WITH_PASSAGES",
    "REASON_IN_DOCUMENTS",
    "SEARCH_R1_PROMPT",
    "SELF_ASK",
    "WITHOUT_PASSAGES",
    "WITH_PASSAGES",
    "Prompt",
    "PromptTemplate",
    "chat_messages",
    "check_template_name",
    "render_prompt",
]
