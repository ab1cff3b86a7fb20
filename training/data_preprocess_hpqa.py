"""HotpotQA's files into the parquet files that training reads: every training record, a seeded sample of the dev file.

Reads the official json (`hotpot_train_v1.1.json`: a list of records with `_id`), the hub's variant (`id` or no id;
json, one record a line, or parquet), and FlashRAG's jsonl (`golden_answers` instead of `answer`). Only id,
question and answer are used: passages come from the retrieval server. Source of the format: https://hotpotqa.github.io
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from flashrag.dataset import Question
from flashrag.errors import UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser, flag
from training.qa_rows import qa_row, write_parquet_files

ALL = -1
FIELDS = ("_id", "id", "question", "answer", "golden_answers")


@dataclass(frozen=True, slots=True)
class Options:
    train_data_path: Path = flag("for example hotpot_train_v1.1.json")
    dev_data_path: Path = flag("for example hotpot_dev_distractor_v1.json")
    output_dir: Path = flag("folder of train.parquet and test.parquet")
    dev_sample_size: int = flag("dev questions to validate on; -1 for all", 100)
    seed: int = flag("seed of the dev sample", 0)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a .json, .jsonl or .parquet file; raises `UserError` naming the file and the first bad record."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a HotpotQA file (json, jsonl or parquet)")
    try:
        match path.suffix:
            case ".parquet":
                records = _read_parquet(path)
            case ".jsonl":
                records = list(_read_lines(path))
            case ".json":
                records = json.loads(path.read_text(encoding="utf-8"))
            case suffix:
                raise UserError(f"{path} ends with {suffix!r}; expected .json, .jsonl or .parquet (decompressed)")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); download it again, or name a jsonl file .jsonl"
        ) from error
    if not isinstance(records, list):
        raise UserError(f"{path} holds a {type(records).__name__}, expected a list of records")
    if not records:
        raise UserError(f"{path} holds no records")
    return records


def rows_of(records: Sequence[Any], *, split: str, path: Path) -> list[dict[str, Any]]:
    """Training rows, one per record, in order. Raises `UserError` for the first bad record, by number from 1."""
    rows: list[dict[str, Any]] = []
    number_by_id: dict[str, int] = {}
    for index, record in enumerate(records):
        number = index + 1
        try:
            question = _question(record, default_id=f"{split}_{index}")
        except UserError as error:
            raise UserError(f"{path}: record {number}: {error}") from error
        first = number_by_id.setdefault(question.id, number)
        if first != number:
            raise UserError(f"{path}: record {number}: id {question.id!r} was record {first}'s already")
        rows.append(qa_row(question, data_source="hotpotqa", index=index, split=split))
    return rows


def sample(rows: Sequence[dict[str, Any]], size: int, seed: int) -> list[dict[str, Any]]:
    """`size` rows in file order, the same for the same seed; every row for `ALL` or when there are fewer."""
    if size == ALL or size >= len(rows):
        return list(rows)
    return sorted(random.Random(seed).sample(rows, size), key=lambda row: row["extra_info"]["index"])


def _question(record: Any, *, default_id: str) -> Question:
    if not isinstance(record, dict):
        raise UserError(f"is a {type(record).__name__}, expected an object with question and answer")
    answer_field = "golden_answers" if "golden_answers" in record else "answer"
    for field in ("question", answer_field):
        if field not in record:
            raise UserError(f'field "{field}" is missing; found {sorted(record)}')
    answers = record[answer_field]
    if answer_field == "answer":
        answers = [answers]
    elif not isinstance(answers, list) or not answers:
        raise UserError(f'field "golden_answers" is {answers!r}, expected a list with at least one text')
    question = Question(record.get("_id", record.get("id", default_id)), record["question"], tuple(answers))
    _check_text(question.id, "id")
    _check_text(question.question, "question")
    for answer in answers:
        _check_text(answer, answer_field)
    return question


def _check_text(value: object, field: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f'field "{field}" is {value!r}, expected a text that is not blank')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f'field "{field}" is {value!r}, which holds a lone surrogate; repair the text') from error


def _read_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number} is not valid JSON ({error})") from error


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = [name for name in pq.read_schema(path).names if name in FIELDS]
        return pq.read_table(path, columns=columns).to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a parquet file ({error}); download it again") from error


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(description="Turn HotpotQA's files into train.parquet and test.parquet for training/run.sh")
    parser.add_fields(Options)
    options = parser.parse_into(Options, arguments)
    if options.dev_sample_size < 1 and options.dev_sample_size != ALL:
        parser.error(f"--dev_sample_size is {options.dev_sample_size}, expected 1 or more, or -1 for all")
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise UserError(f"--output_dir {options.output_dir} is a file; give a folder")
    train = rows_of(read_records(options.train_data_path), split="train", path=options.train_data_path)
    dev = rows_of(read_records(options.dev_data_path), split="dev", path=options.dev_data_path)
    test = sample(dev, options.dev_sample_size, options.seed)
    train_path, test_path = options.output_dir / "train.parquet", options.output_dir / "test.parquet"
    write_parquet_files({train_path: train, test_path: test})
    print(f"{train_path}: {len(train)} questions")
    print(f"{test_path}: {len(test)} of {len(dev)} dev questions")
    train_questions = {row["question"] for row in train}
    if shared := sum(row["question"] in train_questions for row in test):
        print(f"warning: {shared} of them are training questions too: validation will look too good", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
