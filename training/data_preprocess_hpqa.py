"""HotpotQA's files into the parquet files that training reads: every training record, a seeded sample of the dev file.

The published command: data_preprocess.py with one set, whose questions and ids stay as they are. Reads the official
json (`hotpot_train_v1.1.json`), the hub's variant, and any other data set in a shape and a file that
flashrag.questions and flashrag.records read. Source of the format: https://hotpotqa.github.io
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from flashrag.errors import exit_on_user_error
from flashrag.preflight import CHECK_HELP
from flashrag.system.arguments import flag, parse_options
from training import data_preprocess
from training.question_sets import QuestionSet

PROGRAM = "python training/data_preprocess_hpqa.py"
DATA_SOURCE = "hotpotqa"


@dataclass(frozen=True, slots=True)
class Options:
    """Turn HotpotQA's files into train.parquet and test.parquet for training/run.sh."""

    train_data_path: Path = flag("for example hotpot_train_v1.1.json")
    dev_data_path: Path = flag("for example hotpot_dev_distractor_v1.json")
    output_dir: Path = flag("folder of train.parquet and test.parquet")
    dev_sample_size: int = flag("dev questions to validate on; -1 for all", 100)
    seed: int = flag("seed of the dev sample", 0)
    check: bool = flag(CHECK_HELP, False)


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parse_options(Options, PROGRAM, arguments)
    options = data_preprocess.Options(
        train=[QuestionSet(DATA_SOURCE, given.train_data_path)],
        dev=[QuestionSet(DATA_SOURCE, given.dev_data_path)],
        output_dir=given.output_dir,
        dev_sample_size=given.dev_sample_size,
        seed=given.seed,
        check=given.check,
        as_given=True,
    )
    return data_preprocess.prepare(options, PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
