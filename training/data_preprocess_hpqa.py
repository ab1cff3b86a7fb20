"""HotpotQA's files into the parquet files that training reads: every training record, a seeded sample of the dev file.

Reads the official json (`hotpot_train_v1.1.json`), the hub's variant, and any other data set in a shape and a file
that flashrag.questions and flashrag.records read. Only id, question and answers are used: passages come from the
retrieval server. Source of the format: https://hotpotqa.github.io
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from flashrag.errors import UserError, exit_on_user_error
from flashrag.questions import read_questions
from flashrag.system.arguments import flag, parse_options
from training.qa_rows import qa_rows, write_parquet_files

ALL = -1
DATA_SOURCE = "hotpotqa"


@dataclass(frozen=True, slots=True)
class Options:
    """Turn HotpotQA's files into train.parquet and test.parquet for training/run.sh."""

    train_data_path: Path = flag("for example hotpot_train_v1.1.json")
    dev_data_path: Path = flag("for example hotpot_dev_distractor_v1.json")
    output_dir: Path = flag("folder of train.parquet and test.parquet")
    dev_sample_size: int = flag("dev questions to validate on; -1 for all", 100)
    seed: int = flag("seed of the dev sample", 0)


def sample(rows: Sequence[dict[str, Any]], size: int, seed: int) -> list[dict[str, Any]]:
    """`size` rows in file order, the same for the same seed; every row for `ALL` or when there are fewer."""
    if size == ALL or size >= len(rows):
        return list(rows)
    return sorted(random.Random(seed).sample(rows, size), key=lambda row: row["extra_info"]["index"])


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(Options, "python training/data_preprocess_hpqa.py", arguments)
    if options.dev_sample_size < 1 and options.dev_sample_size != ALL:
        raise UserError(f"--dev_sample_size is {options.dev_sample_size}, expected 1 or more, or -1 for all")
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise UserError(f"--output_dir {options.output_dir} is a file; give a folder")
    train = qa_rows(read_questions(options.train_data_path, id_prefix="train"), "train", DATA_SOURCE)
    dev = qa_rows(read_questions(options.dev_data_path, id_prefix="dev"), "dev", DATA_SOURCE)
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
