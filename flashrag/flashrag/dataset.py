"""Question sets in FlashRAG's layout: `{data_dir}/{dataset_name}/{split}.jsonl`, or the path of a file.

A split may have any other ending of a file of records (records.py). What a record may look like: questions.py.
Does not cover: downloading and converting (scripts/), training rows (training/).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field

from flashrag.errors import UserError, did_you_mean
from flashrag.questions import Question, read_questions
from flashrag.records import ENDINGS, EXPECTED_FILE, record_file_stem

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """A data set of the published evaluations: the number of questions in each of FlashRAG's splits of it."""

    rows: Mapping[str, int]
    evaluated_split: str


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DATASETS = {name: DatasetSpec(**values) for name, values in _TABLE.items()}


class DatasetSettings(BaseModel):
    """The configuration of a data set; a sample is the first questions unless `random_sample` is true."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    data_dir: str = Field(description="folder of data sets: {dataset_name}/{split}.jsonl")
    dataset_name: str = Field(min_length=1, description="a folder of data_dir, or the path of a file of questions")
    test_sample_num: int | None = Field(None, ge=1, description="number of questions to evaluate; null: all")
    random_sample: bool = Field(False, description="false: the first ones; true: drawn with `seed`")
    seed: int = Field(2024, description="seed of the sample and of a method's random draws")


def is_dataset_file(dataset_name: str) -> bool:
    """Whether the name is the path of a file. A file has no splits.

    >>> is_dataset_file("my/questions.jsonl"), is_dataset_file("hotpotqa")
    (True, False)
    """
    return record_file_stem(dataset_name) is not None


def load_questions(settings: DatasetSettings, split: str | None) -> list[Question]:
    """The questions of one split, or a sample of `test_sample_num` of them, in the file's order."""
    return sample_questions(settings, read_questions(find_split(settings, split)))


def sample_questions(settings: DatasetSettings, questions: list[Question]) -> list[Question]:
    """The questions of a split that the settings choose, in the file's order."""
    count = settings.test_sample_num
    if count is None or count >= len(questions):
        return questions
    if not settings.random_sample:
        return questions[:count]
    return random_sample(questions, count, settings.seed)


def random_sample(items: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` of the items in their order, the same for the same seed; all of them if there are no more."""
    chosen = random.Random(seed).sample(range(len(items)), min(count, len(items)))
    return [items[index] for index in sorted(chosen)]


def find_split(settings: DatasetSettings, split: str | None) -> Path:
    """The file of a split; raises a `UserError` that lists the data sets or splits that exist."""
    name, data_dir = settings.dataset_name, Path(settings.data_dir)
    if is_dataset_file(name):
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"dataset_name={name} does not exist; give the path of {EXPECTED_FILE}, or a name in data_dir")
    folder = data_dir / name
    for path in (folder / f"{split}{ending}" for ending in ENDINGS):
        if path.is_file():
            return path
    spec = DATASETS.get(name)
    known = spec is not None and split in spec.rows
    which = f" --split {split}" if known and split != spec.evaluated_split else ""
    download = f"; download it: python scripts/download_data.py {name}{which} --data_dir {data_dir}"
    remedy = download if spec else ""
    if not data_dir.is_dir():
        raise UserError(f"data_dir={data_dir} is not a folder; expected {{dataset_name}}/{{split}}.jsonl in it{remedy}")
    if not folder.is_dir():
        there = sorted(child.name for child in data_dir.iterdir() if child.is_dir())
        held = f"data_dir holds: {', '.join(there) or '-'}{did_you_mean(name, there)}"
        raise UserError(f"dataset_name={name}: {folder} is not a folder; {held}{remedy}")
    there = sorted({stem for child in folder.iterdir() if (stem := record_file_stem(child.name))})
    raise UserError(
        f"split={split}: {folder / f'{split}.jsonl'} does not exist; {folder} holds the splits: "
        f"{', '.join(there) or '-'}{did_you_mean(str(split), there)}{remedy if known else ''}"
    )
