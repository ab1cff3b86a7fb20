r"""A prompt: its words, the passages in it, and the text that the model has written so far.

FlashRAG's shape: a system part, a user part, and a line for each passage. A base model continues plain text; an
instruct model gets the same parts through its chat template. Does not cover: tokens (prompt_ids.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from flashrag.document import Document, render_passages
from flashrag.errors import UserError, did_you_mean

NAMES = ("question", "passages", "max_searches", "query", "reasoning")
PASSAGE_NAMES = ("number", *(f"document.{name}" for name in ("id", "title", "heading", "text", "contents")))


class PromptTemplate(BaseModel, frozen=True, extra="forbid"):
    """The words of a method, with `{name}` in the place of a value, and `{{` and `}}` for braces of the text."""

    system: str = Field("", description="the instructions: an instruct model's system message")
    user: str = Field("", description="an instruct model's user message")
    text: str = Field("", description="what a base model continues; empty: system, a blank line, user, cue")
    cue: str = Field("", description="follows the user part for a base model")
    passage: str = Field("[{number}] {document.title}: {document.text}", description="the format of one passage")
    separator: str = Field("\n", description="between two passages")
    with_passages: Self | None = Field(None, description="the second prompt of flare and search-o1: it has passages")

    @field_validator("system", "user", "text", "cue", "passage")
    @classmethod
    def _check_names(cls, part: str, info: ValidationInfo) -> str:
        known = {"passage": PASSAGE_NAMES, "text": (*NAMES, "system")}.get(info.field_name or "", NAMES)
        for found in placeholders(part):
            if found not in known:
                nearest = did_you_mean(found, known) or f"; known here: {', '.join(known)}"
                raise ValueError(f"{{{found}}} stands for nothing{nearest}; braces of the text are doubled: {{{{ }}}}")
        return part

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if not (self.user or self.text):
            raise ValueError("it has neither user nor text; give user, or text for a base model")
        return self

    @property
    def base_text(self) -> str:
        """What a base model continues."""
        if not self.text:
            return "\n\n".join(filter(None, (self.system, self.user))) + self.cue
        values = {**{name: f"{{{name}}}" for name in NAMES}, "system": self.system}
        pieces = Formatter().parse(self.text)
        return "".join(escaped(text) + values.get(name or "", "") for text, name, _, _ in pieces)

    @property
    def parts(self) -> dict[str, str]:
        """The messages of an instruct model, by their roles."""
        return {role: part for role, part in (("system", self.system), ("user", self.user)) if part}

    @property
    def words(self) -> str:
        """Everything that the template may put into a prompt."""
        own = (self.system, self.user, self.text, self.cue, self.passage, self.separator)
        return "".join(own) + (self.with_passages.words if self.with_passages else "")

    def fill(self, documents: tuple[Document, ...] = (), written: str = "", **values: str) -> "Prompt":
        return Prompt(self, values, documents, written)


def escaped(text: str) -> str:
    """A text as a template has it: its braces are doubled."""
    return text.replace("{", "{{").replace("}", "}}")


def placeholders(part: str) -> list[str]:
    """The names in the braces of a text; raises `ValueError` for braces that hold no name."""
    try:
        found = [piece[1:] for piece in Formatter().parse(part) if piece[1] is not None]
    except ValueError as error:
        raise ValueError(f"{error}; braces of the text are doubled: {{{{ }}}}") from error
    # With a format or a conversion, the whole is no known name.
    return [f"{name}{'!' * bool(how)}{how or ''}{':' * bool(form)}{form}" for name, form, how in found]


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
        return self._filled(self.template.base_text)[0] + (f" {self.written}" if self.written else "")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation of an instruct model, without the text that the model has written.

        The user has a message whatever the question is; the system has none if nothing came into it.
        """
        parts = self.template.parts
        if "user" not in parts:
            raise UserError("the prompt has no user part, which a chat needs; add it, or use apply_chat=false")
        filled = zip(parts, self._filled(*parts.values()), strict=True)
        return [{"role": role, "content": content} for role, content in filled if content or role == "user"]

    def _filled(self, *parts: str) -> list[str]:
        """All names are replaced in one pass: a question that contains "{passages}" stays as it is."""
        passages = render_passages(self.documents, self.template.passage, self.template.separator)
        return [part.format(**self.values, passages=passages) for part in parts]
