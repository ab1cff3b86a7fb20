"""Question sets in FlashRAG's format: `{data_dir}/{dataset_name}/{split}.jsonl`, or the path of a file in this format.

A line is `{"id", "question", "golden_answers", "metadata"}`; only `metadata` may be missing. Gold answers are a
string, a list of strings, a list of lists (aliases of parts: each string counts), or true/false (yes/no).
Does not cover: downloading and converting (scripts/), training rows (training/).
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from flashrag.config import validated_lines
from flashrag.errors import UserError


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """A data set of the published evaluations: the number of questions in each of FlashRAG's splits of it."""

    rows: Mapping[str, int]
    evaluated_split: str


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DATASETS = {name: DatasetSpec(**values) for name, values in _TABLE.items()}


@dataclass(frozen=True, slots=True)
class Question:
    """One question with all of its gold answers."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class DatasetSettings(BaseModel):
    """The configuration of a data set; a sample is the first questions unless `random_sample` is true."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    data_dir: str = Field(description="folder of data sets: {dataset_name}/{split}.jsonl")
    dataset_name: str = Field(min_length=1, description="a folder of data_dir, or the path of a .jsonl file")
    test_sample_num: int | None = Field(None, ge=1, description="number of questions to evaluate; null: all")
    random_sample: bool = Field(False, description="false: the first ones; true: drawn with `seed`")
    seed: int = Field(2024, description="seed of the sample and of a method's random draws")


def is_dataset_file(dataset_name: str) -> bool:
    """Whether the name is the path of a file. A file has no splits.

    >>> is_dataset_file("my/questions.jsonl"), is_dataset_file("hotpotqa")
    (True, False)
    """
    return dataset_name.endswith(".jsonl")


def load_questions(settings: DatasetSettings, split: str | None) -> list[Question]:
    """The questions of one split, or a sample of `test_sample_num` of them, in the file's order."""
    questions = read_questions(find_split(settings, split))
    count = settings.test_sample_num
    if count is None or count >= len(questions):
        return questions
    if not settings.random_sample:
        return questions[:count]
    chosen = random.Random(settings.seed).sample(range(len(questions)), count)
    return [questions[index] for index in sorted(chosen)]


def find_split(settings: DatasetSettings, split: str | None) -> Path:
    """The file of a split; raises a `UserError` that lists the data sets or splits that exist."""
    name, data_dir = settings.dataset_name, Path(settings.data_dir)
    if is_dataset_file(name):
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"dataset_name={name} does not exist; give the path of a .jsonl file, or a name in data_dir")
    folder = data_dir / name
    path = folder / f"{split}.jsonl"
    if path.is_file():
        return path
    download = f"; download it: python scripts/download_data.py {name} --data_dir {data_dir}"
    remedy = download if name in DATASETS else ""
    if not data_dir.is_dir():
        raise UserError(f"data_dir={data_dir} is not a folder; expected {{dataset_name}}/{{split}}.jsonl in it{remedy}")
    if not folder.is_dir():
        there = ", ".join(sorted(child.name for child in data_dir.iterdir() if child.is_dir()))
        raise UserError(f"dataset_name={name}: {folder} is not a folder; data_dir holds: {there or '-'}{remedy}")
    there = ", ".join(sorted(child.stem for child in folder.glob("*.jsonl")))
    known = name in DATASETS and split in DATASETS[name].rows
    raise UserError(
        f"split={split}: {path} does not exist; {folder} holds the splits: {there or '-'}{remedy if known else ''}"
    )


def read_questions(path: Path) -> list[Question]:
    """Every question of a file; raises a `UserError` that names the first bad line."""
    questions: list[Question] = []
    line_of_id: dict[str, int] = {}
    try:
        for number, line in validated_lines(_Line, path, str(path), '{"id", "question", "golden_answers"}'):
            first = line_of_id.setdefault(line.id, number)
            if first != number:
                raise UserError(f"{path} line {number}: id {line.id!r} is already in line {first}")
            questions.append(Question(line.id, line.question, line.golden_answers, line.metadata or {}))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not questions:
        raise UserError(f"{path} holds no question")
    return questions


class _Line(BaseModel):
    id: str = Field(min_length=1, coerce_numbers_to_str=True)
    question: str
    choices: Any = None
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] | None = None

    @field_validator("question")
    @classmethod
    def _not_blank(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("expected a text that is not blank")
        return question

    @field_validator("golden_answers", mode="before")
    @classmethod
    def _one_at_least(cls, given: Any, info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("choices"):
            raise ValueError("multiple-choice questions (`choices`) are not supported")
        if not (answers := parse_gold_answers(given)):
            raise ValueError("expected a list of at least one string")
        return answers


def parse_gold_answers(value: object) -> tuple[str, ...]:
    """Gold answers of any supported type as distinct strings, in order; () for another type or an empty list.

    >>> parse_gold_answers([["King Wu", "Wu"], ["Wu of Zhou"]]), parse_gold_answers(False)
    (('King Wu', 'Wu', 'Wu of Zhou'), ('no',))
    """
    match value:
        case bool():
            return ("yes",) if value else ("no",)
        case str():
            return (value,)
        case list():
            parts = [parse_gold_answers(part) for part in value]
            # One bad part makes the whole list invalid: without that answer, right predictions would count as wrong.
            return tuple(dict.fromkeys(text for part in parts for text in part)) if all(parts) else ()
        case _:
            return ()
