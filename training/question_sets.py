"""The question sets of a preparation: how one is named, how often its questions count, and ids that no two share."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from flashrag.dataset import DATASETS, DatasetSettings, find_split, random_sample
from flashrag.errors import UserError
from flashrag.metrics import named_support
from flashrag.preflight import PreflightFailed, error
from flashrag.questions import Question, QuestionFile, parse_metadata
from flashrag.system.arguments import flag, in_range

SET = "set"  # in the metadata of a question: the one that it was read from
SETS = "question sets"  # flags
MOST_COPIES = 100  # of one question
EXPECTED_SET = (
    "expected NAME, NAME/SPLIT or NAME=FILE, where NAME has letters, digits, - and _, then :WEIGHT if it is not 1, "
    f"above 0 and up to {MOST_COPIES}; several with blanks between: nq musique:0.5 own=my/questions.jsonl:2"
)
_SET = re.compile(r"(?P<name>\w[\w-]*)(?:/(?P<split>\w[\w-]*)|=(?P<path>.+?))?(?::(?P<weight>[-+.\de]+))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A set to read from a file, or from a split in the folder of data sets; `weight` is for training."""

    name: str
    path: Path | None = None
    split: str | None = None
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """The set of one word of the command line; raises argparse's error for another word."""
        with suppress(ValueError):
            if parts := _SET.fullmatch(text):
                path = Path(parts["path"]) if parts["path"] else None
                if 0 < (weight := float(parts["weight"] or 1)) <= MOST_COPIES:
                    return cls(parts["name"], path, parts["split"], weight)
        raise argparse.ArgumentTypeError(f"{text!r} was given; {EXPECTED_SET}")

    def __str__(self) -> str:
        where = f"={self.path}" if self.path else f"/{self.split}" if self.split else ""
        return f"{self.name}{where}" + (f":{self.weight:g}" if self.weight != 1 else "")

    def read(self, data_dir: Path, role: str) -> QuestionFile:
        """Its questions for the role, train or dev; without a split, those of train or of the evaluated split."""
        usual = DATASETS[self.name].evaluated_split if role == "dev" and self.name in DATASETS else role
        settings = DatasetSettings(data_dir=str(data_dir), dataset_name=self.name)
        path = self.path or find_split(settings, self.split or usual)
        return QuestionFile.read(path, id_prefix=role, metadata_of=self._metadata)

    def _metadata(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Of a record, what names its support alone: the rest of the metadata may be whole articles."""
        metadata = parse_metadata(record)
        try:
            return {SET: self, **named_support(metadata)}
        except (AttributeError, LookupError, TypeError, ValueError) as reason:
            raise UserError(
                f"metadata: its supporting documents cannot be read ({reason!r}); expected one of the shapes of "
                "flashrag.metrics.supporting_titles, or none"
            ) from reason

    def weighted(self, questions: Sequence[Question], seed: int) -> list[Question]:
        """Each question as often as the weight says; its fraction is a seeded sample: 2.5 takes half of them thrice."""
        whole, fraction = divmod(self.weight, 1)
        part = max(round(fraction * len(questions)), 0 if whole else 1)
        return [*questions] * int(whole) + random_sample(questions, part, seed)


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """The flags that name the sets."""

    train: Sequence[QuestionSet] = flag(
        "SET or SET:WEIGHT, to train on", type=QuestionSet.parse, action="extend", metavar="SET", group=SETS
    )
    dev: Sequence[QuestionSet] | None = flag(
        "to validate on (default: what --hold_out takes)",
        None, type=QuestionSet.parse, action="extend", metavar="SET", group=SETS,
    )  # fmt: skip
    data_dir: Path = flag("folder of the sets that are given by name: NAME/SPLIT.jsonl", Path("data"), group=SETS)
    dev_sample_size: int = flag("questions of each set of --dev to validate on; -1 for all", 100, group=SETS)
    hold_out: int | None = flag(
        "questions to take out of each train set that --dev does not name, to validate on them all (default: none)",
        None, type=in_range(int, 1), group=SETS,
    )  # fmt: skip
    seed: int = flag("seed of every sample", 0, group=SETS)


def set_name(question: Question) -> str:
    return question.metadata[SET].name


def read_sets(sets: Iterable[QuestionSet], data_dir: Path, role: str) -> list[QuestionFile]:
    """The file of each set; raises `PreflightFailed` with the reason of each that cannot be read."""
    files, errors = [], []
    for one in sets:
        try:
            files.append(one.read(data_dir, role))
        except UserError as reason:
            errors.append(error(str(reason)))
    if errors:
        raise PreflightFailed(errors)
    return files


def with_own_ids(questions: Iterable[Question], role: str, taken: set[str]) -> list[Question]:
    """The questions with ids that are not `taken` yet: one that is becomes NAME/ROLE/ID, then NAME/ROLE/ID#2, …"""
    renamed = []
    for question in questions:
        own, long, number = question.id, f"{set_name(question)}/{role}/{question.id}", 1
        while own in taken:
            own, number = long if number == 1 else f"{long}#{number}", number + 1
        taken.add(own)
        renamed.append(question if own == question.id else replace(question, id=own))
    return renamed
