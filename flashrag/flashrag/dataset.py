"""Question sets in FlashRAG's format: `{data_dir}/{dataset_name}/{split}.jsonl`, a question a line.

A line is `{"id", "question", "golden_answers": [..], "metadata": {..}}`; `metadata` may be missing, the rest may not.
Does not cover: training rows (training/).
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flashrag.errors import UserError


@dataclass(frozen=True, slots=True)
class Question:
    """One question with every answer that counts as right."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class DatasetSettings(BaseModel):
    """What a data set reads from a configuration; sampling takes the first questions unless `random_sample`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    data_dir: str
    dataset_name: str = Field(min_length=1)
    test_sample_num: int | None = Field(None, ge=1)
    random_sample: bool = False
    seed: int = 2024


def load_questions(settings: DatasetSettings, split: str) -> list[Question]:
    """The questions of one split, sampled when `test_sample_num` says so, in the file's order."""
    questions = read_questions(find_split(settings, split))
    count = settings.test_sample_num
    if count is None or count >= len(questions):
        return questions
    if not settings.random_sample:
        return questions[:count]
    chosen = random.Random(settings.seed).sample(range(len(questions)), count)
    return [questions[index] for index in sorted(chosen)]


def find_split(settings: DatasetSettings, split: str) -> Path:
    """The file of a split; raises `UserError` that lists what is there instead."""
    folder = Path(settings.data_dir) / settings.dataset_name
    path = folder / f"{split}.jsonl"
    if path.is_file():
        return path
    if not Path(settings.data_dir).is_dir():
        raise UserError(f"data_dir={settings.data_dir} is no folder; expected {{dataset_name}}/{{split}}.jsonl inside")
    if not folder.is_dir():
        there = ", ".join(sorted(child.name for child in Path(settings.data_dir).iterdir() if child.is_dir()))
        raise UserError(f"dataset_name={settings.dataset_name}: {folder} is no folder; data_dir holds: {there or '-'}")
    there = ", ".join(sorted(child.stem for child in folder.glob("*.jsonl")))
    raise UserError(f"split={split}: {path} does not exist; {folder} holds the splits: {there or '-'}")


def read_questions(path: Path) -> list[Question]:
    """Every question of a file; raises `UserError` that names the first bad line."""
    questions: list[Question] = []
    line_of_id: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                question = _parse_line(line, f"{path} line {number}")
                first = line_of_id.setdefault(question.id, number)
                if first != number:
                    raise UserError(f"{path} line {number}: id {question.id!r} stands in line {first} already")
                questions.append(question)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not questions:
        raise UserError(f"{path} holds no question")
    return questions


def _parse_line(line: str, place: str) -> Question:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f'{place} holds {type(record).__name__}; expected {{"id", "question", "golden_answers"}}')
    question_id, question = record.get("id"), record.get("question")
    answers, metadata = record.get("golden_answers"), record.get("metadata") or {}
    if not isinstance(question_id, str | int) or isinstance(question_id, bool) or question_id == "":
        raise UserError(f"{place}: id is {question_id!r}; expected a string")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{place}: question is {question!r}; expected a string that is not empty")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{place}: golden_answers is {answers!r}; expected a list of at least one string")
    if not isinstance(metadata, dict):
        raise UserError(f"{place}: metadata is {metadata!r}; expected an object")
    return Question(str(question_id), question, tuple(answers), metadata)
