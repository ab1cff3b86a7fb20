r"""A prompt: its words, the passages in it, and the text that the model has written so far.

FlashRAG's shape: a system part, a user part, and a line for each passage. A base model continues plain text; an
instruct model gets the same parts through its chat template. BASELINES has the templates of the methods that ReSearch
is compared with. Does not cover: tokens (prompt_ids.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flashrag.config import read_yaml_mapping
from flashrag.document import NUMBERED, Document, render_passages


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The words of a method. `{name}` is replaced by a value, `{passages}` by the rendered passages.

    `cue` follows the user part for a base model; an instruct model's chat template says whose turn it is.
    """

    system: str = ""
    user: str = "Question: {question}"
    cue: str = "\nAnswer:"
    passage: str = NUMBERED
    separator: str = "\n"

    def fill(self, documents: tuple[Document, ...] = (), written: str = "", **values: str) -> "Prompt":
        return Prompt(self, values, documents, written)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template with its values; `written` is the beginning of the answer, which the model continues."""

    template: PromptTemplate
    values: Mapping[str, str]
    documents: tuple[Document, ...]
    written: str

    @property
    def text(self) -> str:
        """The text that a base model continues."""
        parts = (message["content"] for message in self.messages)
        return "\n\n".join(parts) + self.template.cue + (f" {self.written}" if self.written else "")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation of an instruct model, without the text that the model has written."""
        parts = {"system": self._fill(self.template.system), "user": self._fill(self.template.user)}
        return [{"role": role, "content": content} for role, content in parts.items() if content]

    def _fill(self, part: str) -> str:
        """All names are replaced in one pass: a question that contains "{passages}" stays as it is."""
        passages = render_passages(self.documents, self.template.passage, self.template.separator)
        values = {**self.values, "passages": passages}
        return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), part)


BASELINES = {
    method: PromptTemplate(**parts)
    for method, parts in read_yaml_mapping(Path(__file__).with_name("baselines.yaml")).items()
}
