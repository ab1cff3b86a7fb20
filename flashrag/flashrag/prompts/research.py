"""The prompts of the published project, by name, for base and instruct models; research.yaml has their words.

A base model continues a template directly; an instruct model gets the same instructions as the system message of
its own chat template.
"""

from collections.abc import Collection
from pathlib import Path

from flashrag.config import read_yaml_mapping
from flashrag.errors import UserError

PYTHON_TEMPLATE = "qa_python_template"
SEARCH_R1_TEMPLATE = "search_r1"  # of training only: BASELINES has its words
INSTRUCTIONS_OF = read_yaml_mapping(Path(__file__).with_suffix(".yaml"))


def check_template_name(template_name: str, known: Collection[str] = INSTRUCTIONS_OF) -> str:
    """The name; raises `UserError` when no prompt template has it."""
    if template_name not in known:
        names = ", ".join(sorted(known))
        raise UserError(f"prompt_template_name={template_name!r} is not known; choose one of: {names}")
    return template_name


def render_prompt(question: str, template_name: str = "qa_template") -> str:
    """The text that a base model continues.

    >>> render_prompt("Who wrote Ulysses?").endswith("with latex format. User: Who wrote Ulysses? Assistant:")
    True
    """
    check_template_name(template_name)
    return f"A conversation between User and Assistant. {INSTRUCTIONS_OF[template_name]} User: {question} Assistant:"


def chat_messages(question: str, template_name: str = "qa_template") -> list[dict[str, str]]:
    """The conversation that an instruct model's chat template renders, with the instructions of a prompt template."""
    check_template_name(template_name)
    return [{"role": "system", "content": INSTRUCTIONS_OF[template_name]}, {"role": "user", "content": question}]
