"""The prompts of every method.

template.py     the parts of a prompt, and its form for base and instruct models
choice.py       the prompt of a method: our own, or that of a file; its record
research.yaml   what a model is trained with; baselines.yaml: the methods that ReSearch is compared with
"""

from flashrag.prompts.choice import (
    BASELINES,
    PROMPTS,
    PYTHON_TEMPLATE,
    RESEARCH_TEMPLATES,
    SEARCH_R1_TEMPLATE,
    ChosenPrompt,
    PromptRecord,
    check_template_name,
    choose_prompt,
    read_record,
    render_prompt,
    write_record,
)
from flashrag.prompts.template import Prompt, PromptTemplate

__all__ = [
    "BASELINES",
    "PROMPTS",
    "PYTHON_TEMPLATE",
    "RESEARCH_TEMPLATES",
    "SEARCH_R1_TEMPLATE",
    "ChosenPrompt",
    "Prompt",
    "PromptRecord",
    "PromptTemplate",
    "check_template_name",
    "choose_prompt",
    "read_record",
    "render_prompt",
    "write_record",
]
