"""The prompt of a method: our own by its name, or that of a file (`prompt_file`) in its place, read in one way for
training and evaluation; and its record, which a run and a trained model keep.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from flashrag.config import read_yaml_mapping, validated
from flashrag.errors import UserError, did_you_mean
from flashrag.prompts.template import PromptTemplate, placeholders
from flashrag.system.files import write_text

PYTHON_TEMPLATE = "qa_python_template"
SEARCH_R1_TEMPLATE = "search_r1"
FETCHED = Path("data", "prompts")  # where a name that is no path is looked for
OPTIONAL = frozenset({"max_searches", "reasoning"})
RECORD_FILE = "trained_prompt.json"  # beside the weights of a model


def _shipped(file: str) -> dict[str, PromptTemplate]:
    prompts = read_yaml_mapping(Path(__file__).with_name(file))
    return {name: validated(PromptTemplate, parts, f"{file}: {name}") for name, parts in prompts.items()}


TRAINED = _shipped("research.yaml")  # those that `prompt_template_name` names
RESEARCH_TEMPLATES = frozenset(TRAINED) - {SEARCH_R1_TEMPLATE}  # those in ReSearch's tags
BASELINES = _shipped("baselines.yaml")
PROMPTS = {**TRAINED, **BASELINES}


def check_template_name(template_name: str, known: Collection[str] = RESEARCH_TEMPLATES) -> str:
    """The name; raises `UserError` when no prompt template has it."""
    if template_name not in known:
        names = ", ".join(sorted(known))
        raise UserError(f"prompt_template_name={template_name!r} is not known; choose one of: {names}")
    return template_name


class PromptRecord(NamedTuple):
    """Which prompt was used. Equal hashes mean equal words, whatever the name or the file."""

    name: str
    apply_chat: bool
    sha256: str

    def __str__(self) -> str:
        form = "in the chat template" if self.apply_chat else "as plain text"
        return f"{self.name} ({form}, sha256 {self.sha256[:12]})"


@dataclass(frozen=True)
class ChosenPrompt:
    """A prompt: the name of our own one, and the file that takes its place, None for our own."""

    own_name: str
    template: PromptTemplate
    file: Path | None = None

    @property
    def name(self) -> str:
        return str(self.file) if self.file else f"built-in {self.own_name}"

    def record(self, apply_chat: bool) -> PromptRecord:
        words = json.dumps(_words(self.template, apply_chat))
        return PromptRecord(self.name, apply_chat, hashlib.sha256(words.encode(errors="replace")).hexdigest())


def _words(template: PromptTemplate, apply_chat: bool) -> list[object]:
    """The parts of a template that reach a model."""
    parts = list(template.parts.items()) if apply_chat else template.base_text
    passages = [template.passage, template.separator] if "passages" in _names(template) else []
    second = template.with_passages
    return [parts, passages, *([_words(second, apply_chat)] if second else [])]


def choose_prompt(own_name: str, file: str | Path | None = None) -> ChosenPrompt:
    """Our own prompt of this name, or the one in a file that takes its place; raises `UserError` if it cannot.

    `file` is a path, or the name of a fetched prompt: `search-r1` stands for data/prompts/search-r1.yaml.
    """
    own = PROMPTS[own_name]
    if file is None:
        return ChosenPrompt(own_name, own)
    path = Path(file)
    if path.name == str(file) and not path.is_file() and path.suffix not in (".yaml", ".yml"):
        path = FETCHED / f"{file}.yaml"
    if not path.exists():
        nearest = did_you_mean(path.stem, (each.stem for each in path.parent.glob("*.yaml")))
        raise UserError(
            f"prompt_file={file}: {path} does not exist{nearest}; python scripts/download_data.py prompts fetches the "
            "published ones, and without prompt_file our own words are used"
        )
    given = validated(PromptTemplate, read_yaml_mapping(path), f"prompt_file={path}")
    _check_fits(given, own, f"prompt_file={path}", f"takes the place of {own_name}")
    return ChosenPrompt(own_name, given, path)


def _check_fits(given: PromptTemplate, own: PromptTemplate, where: str, place: str) -> None:
    """Raise `UserError` unless every form of the prompt has the values of our own, and no others."""
    known = _names(own)
    forms = {"text": given.base_text} if given.text else {}
    if given.user:
        forms["system and user"] = given.system + given.user + given.cue
    for form, part in forms.items():
        names = set(placeholders(part))
        if extra := sorted(names - known):
            raise UserError(f"{where}: {{{extra[0]}}} has no value here: it {place}, which has {_listed(known)}")
        if lacking := known - OPTIONAL - names:
            raise UserError(f"{where}: {form} lacks {_listed(lacking)}: it {place}; write it where the value belongs")
    if (given.with_passages is None) != (own.with_passages is None):
        has, remedy = ("a", "add it") if own.with_passages else ("no", "leave it out")
        raise UserError(f"{where}: it {place}, which has {has} second prompt, with_passages; {remedy}")
    if given.with_passages and own.with_passages:
        _check_fits(given.with_passages, own.with_passages, f"{where}: with_passages", place)


def _names(template: PromptTemplate) -> set[str]:
    return set(chain(placeholders(template.base_text), *map(placeholders, template.parts.values())))


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))


def render_prompt(question: str, template_name: str = "qa_template") -> str:
    """The text that a base model continues.

    >>> render_prompt("Who wrote Ulysses?").endswith("with latex format. User: Who wrote Ulysses? Assistant:")
    True
    """
    return TRAINED[check_template_name(template_name, TRAINED)].fill(question=question).text


def write_record(folder: Path, record: PromptRecord) -> None:
    """Note beside a model's weights which prompt it was trained with."""
    write_text(folder / RECORD_FILE, json.dumps(record._asdict(), indent=2) + "\n")


def read_record(folder: Path) -> PromptRecord | None:
    """The note of `write_record`; None without one, or if it cannot be read."""
    try:
        return PromptRecord(**json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
