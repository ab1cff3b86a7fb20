"""The prompts of the published project, by name, for base and instruct models.

A base model continues a template directly; an instruct model gets the same instructions as the system message of
its own chat template. Source: the evaluation case of the ReSearch pilot's published description.
"""

from flashrag.errors import UserError

INSTRUCTIONS = (
    "The user asks a question, and the assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "During thinking, the assistant can invoke the wikipedia search tool to search for fact information about "
    "specific topics if needed. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags respectively, "
    "and the search query and result are enclosed within <search> </search> and <result> </result> tags respectively. "
    "For example, <think> This is the reasoning process. </think> <search> search query here </search> "
    "<result> search result here </result> <think> This is the reasoning process. </think> "
    r"<answer> The final answer is \[ \boxed{answer here} \] </answer>. "
    r"In the last part of the answer, the final exact answer is enclosed within \boxed{} with latex format."
)

# The same with the python tool (flashrag/tools/python.py). The words are ours: no prompt with it is published.
INSTRUCTIONS_WITH_PYTHON = (
    "The user asks a question, and the assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "During thinking, the assistant can invoke the wikipedia search tool to search for fact information about "
    "specific topics if needed, and the python tool to run code, for example to calculate, if needed; "
    "the result of code is what it prints. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags respectively, "
    "the search query within <search> </search> tags, python code within <python> </python> tags, "
    "and the result of either within <result> </result> tags. "
    "For example, <think> This is the reasoning process. </think> <search> search query here </search> "
    "<result> search result here </result> <think> This is the reasoning process. </think> "
    "<python> print(code here) </python> <result> printed output here </result> "
    "<think> This is the reasoning process. </think> "
    r"<answer> The final answer is \[ \boxed{answer here} \] </answer>. "
    r"In the last part of the answer, the final exact answer is enclosed within \boxed{} with latex format."
)

PYTHON_TEMPLATE = "qa_python_template"
INSTRUCTIONS_OF = {"qa_template": INSTRUCTIONS, PYTHON_TEMPLATE: INSTRUCTIONS_WITH_PYTHON}
# `{question}` is filled by replacement, not by str.format: the text is full of literal braces.
PROMPT_TEMPLATES = {
    name: f"A conversation between User and Assistant. {instructions} User: {{question}} Assistant:"
    for name, instructions in INSTRUCTIONS_OF.items()
}


def check_template_name(template_name: str) -> None:
    """Raise `UserError` when no prompt template has this name."""
    if template_name not in PROMPT_TEMPLATES:
        known = ", ".join(sorted(PROMPT_TEMPLATES))
        raise UserError(f"prompt_template_name={template_name!r} is not known; choose one of: {known}")


def render_prompt(question: str, template_name: str = "qa_template") -> str:
    """The text that a base model continues.

    >>> render_prompt("Who wrote Ulysses?").endswith("with latex format. User: Who wrote Ulysses? Assistant:")
    True
    """
    check_template_name(template_name)
    return PROMPT_TEMPLATES[template_name].replace("{question}", question)


def chat_messages(question: str, template_name: str = "qa_template") -> list[dict[str, str]]:
    """The conversation that an instruct model's chat template renders, with the instructions of a prompt template."""
    check_template_name(template_name)
    return [{"role": "system", "content": INSTRUCTIONS_OF[template_name]}, {"role": "user", "content": question}]
