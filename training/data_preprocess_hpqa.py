"""HotpotQA's files into the parquet files that training reads: every training record, a seeded sample of the dev file.

Reads the official json (`hotpot_train_v1.1.json`), the hub's variant, and any other data set in a shape and a file
that flashrag.questions and flashrag.records read. Only id, question and answers are used: passages come from the
retrieval server. Source of the format: https://hotpotqa.github.io
"""

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from flashrag.errors import UserError, exit_on_user_error
from flashrag.preflight import (
    CHECK_HELP,
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    Rule,
    checked_command,
    enforce,
    error,
    examine,
    fact,
    free_bytes,
    gathered,
    gib,
    output_folder,
    question_findings,
    show_check,
    warning,
)
from flashrag.questions import QuestionFile
from flashrag.system.arguments import flag, parse_options
from flashrag.system.machine import versions_in_words
from training.qa_rows import qa_rows, write_parquet_files

PROGRAM = "python training/data_preprocess_hpqa.py"
ALL = -1
DATA_SOURCE = "hotpotqa"
ROW_BYTES = 200  # of a row without its question


@dataclass(frozen=True, slots=True)
class Options:
    """Turn HotpotQA's files into train.parquet and test.parquet for training/run.sh."""

    train_data_path: Path = flag("for example hotpot_train_v1.1.json")
    dev_data_path: Path = flag("for example hotpot_dev_distractor_v1.json")
    output_dir: Path = flag("folder of train.parquet and test.parquet")
    dev_sample_size: int = flag("dev questions to validate on; -1 for all", 100)
    seed: int = flag("seed of the dev sample", 0)
    check: bool = flag(CHECK_HELP, False)


class DataFacts(MachineFacts):
    """What there is to know about the files that are read and written; `arguments` are the command's."""

    def __init__(self, options: Options, arguments: Sequence[str]) -> None:
        self.options = options
        self.arguments = arguments

    @fact
    def train(self) -> QuestionFile:
        return QuestionFile.read(self.options.train_data_path, id_prefix="train")

    @fact
    def dev(self) -> QuestionFile:
        return QuestionFile.read(self.options.dev_data_path, id_prefix="dev")

    @fact
    def sample_size(self) -> int:
        if (size := self.options.dev_sample_size) < 1 and size != ALL:
            raise UserError(f"--dev_sample_size is {size}, expected 1 or more, or -1 for all")
        return size

    @fact
    def rows(self) -> Mapping[Path, list[dict[str, Any]]]:
        """The rows of each file that will be written."""
        options = self.options
        dev = qa_rows(self.dev.questions, "dev", DATA_SOURCE)
        return {
            options.output_dir / "train.parquet": qa_rows(self.train.questions, "train", DATA_SOURCE),
            options.output_dir / "test.parquet": sample(dev, self.sample_size, options.seed),
        }

    @property
    def written_bytes(self) -> int:
        """About what is written: each text stands there twice, and parquet packs it."""
        return sum(len(row["question"].encode()) * 2 + ROW_BYTES for rows in self.rows.values() for row in rows)


def sample(rows: Sequence[dict[str, Any]], size: int, seed: int) -> list[dict[str, Any]]:
    """`size` rows in file order, the same for the same seed; every row for `ALL` or when there are fewer."""
    if size == ALL or size >= len(rows):
        return list(rows)
    return sorted(random.Random(seed).sample(rows, size), key=lambda row: row["extra_info"]["index"])


def train_is_read(facts: DataFacts) -> Iterator[Finding]:
    yield from question_findings(facts.train)


def dev_is_read(facts: DataFacts) -> Iterator[Finding]:
    yield from question_findings(facts.dev)


def files_are_apart(facts: DataFacts) -> Iterator[Finding]:
    train, test = facts.rows.values()
    train_questions = {row["question"] for row in train}
    if shared := sum(row["question"] in train_questions for row in test):
        yield warning(
            f"{shared} of the {len(test)} dev questions are training questions too: validation will look too good; "
            "give another dev file"
        )


def output_can_be_written(facts: DataFacts) -> Iterator[Finding]:
    folder = facts.options.output_dir
    if folder.exists() and not folder.is_dir():
        yield error(f"--output_dir {folder} is a file; give a folder")
        return
    yield from output_folder("--output_dir", folder, lambda: facts.written_bytes, "the rows")


RULES: Mapping[str, Rule[DataFacts]] = {
    "data.sample": gathered("sample_size"),
    "data.train": train_is_read,
    "data.dev": dev_is_read,
    "data.overlap": files_are_apart,
    "data.output": output_can_be_written,
    **MACHINE_RULES,
}


def _written(facts: DataFacts) -> str:
    return ", ".join(f"{path.absolute()}: {len(rows)} rows" for path, rows in facts.rows.items())


def _first_row(facts: DataFacts) -> str:
    return json.dumps(next(iter(facts.rows.values()))[0], ensure_ascii=False)


PLAN: Plan[DataFacts] = {
    "read": {
        "train": lambda facts: f"{facts.options.train_data_path}: {facts.train}",
        "dev": lambda facts: f"{facts.options.dev_data_path}: {facts.dev}",
    },
    "write": {
        "files": _written,
        "columns": lambda facts: ", ".join(next(iter(facts.rows.values()))[0]),
        "first row": _first_row,
        "disk": lambda facts: f"about {gib(facts.written_bytes)} of {gib(free_bytes(facts.options.output_dir))} free",
    },
    "run": {
        "command": lambda facts: checked_command(PROGRAM, facts.arguments),
        "versions": lambda _: versions_in_words(("flashrag", "pyarrow")),
    },
}


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    facts = DataFacts(parse_options(Options, PROGRAM, arguments), arguments)
    findings = examine(RULES, facts)
    if facts.options.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    write_parquet_files(facts.rows)
    (train_path, train), (test_path, test) = facts.rows.items()
    print(f"{train_path}: {len(train)} questions")
    print(f"{test_path}: {len(test)} of {len(facts.dev.questions)} dev questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
