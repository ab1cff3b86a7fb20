"""Rows of the parquet files that training reads: built from a question and its golden answers, written whole.

Covers the columns that verl and our agent loop expect. Does not cover where the questions come from: HotpotQA's
files are read by `data_preprocess_hpqa.py`, the demo's by its own recipe. The column layout is the one that verl
documents for RL data (prompt, data_source, reward_model, extra_info), plus `question` (the published prompt_key).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flashrag.errors import UserError
from flashrag.system.files import staged

AGENT_NAME = "search_agent"  # the name under which verl_search registers its agent loop
ABILITY = "question_answering"


def qa_row(
    question: str,
    golden_answers: Sequence[str],
    *,
    data_source: str,
    id: str,
    index: int,
    split: str,
) -> dict[str, Any]:
    """One training row; texts are kept verbatim, so that evaluation on the same question builds the same prompt.

    Raises `UserError`, naming the field, when the question is blank or no usable golden answer is given.
    """
    _check_text(question, "question")
    _check_text(id, "id")
    if isinstance(golden_answers, str) or not golden_answers:
        raise UserError(f'field "golden_answers" is {golden_answers!r}, expected a list with at least one text')
    for answer in golden_answers:
        _check_text(answer, "golden_answers")
    return {
        "data_source": data_source,
        "question": question,
        "ability": ABILITY,
        "reward_model": {"style": "rule", "ground_truth": list(golden_answers)},
        "extra_info": {"id": id, "index": index, "split": split},
        "prompt": [{"role": "user", "content": question}],
        "agent_name": AGENT_NAME,
    }


def write_parquet_files(rows_by_path: Mapping[Path, Sequence[Mapping[str, Any]]]) -> None:
    """Write several files: each is complete before the first takes its name, and on an error none is written.

    Creates missing folders. An earlier file of the same name is replaced. Raises `UserError` when a file would have
    no rows (a table without rows has no columns either) or its folder cannot be written.
    """
    import pyarrow as pa  # here, not above: a command's bad input is reported before the slow import
    import pyarrow.parquet as pq

    with ExitStack() as files:
        for path, rows in rows_by_path.items():
            if not rows:
                raise UserError(f"no rows to write to {path}")
            try:
                pq.write_table(pa.Table.from_pylist(list(rows)), files.enter_context(staged(path)))
            except OSError as error:
                raise UserError(
                    f"cannot write {error.filename or path}: {error.strerror}; choose a writable folder"
                ) from error


def _check_text(value: object, field: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f'field "{field}" is {value!r}, expected a text that is not blank')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f'field "{field}" is {value!r}, which holds half a surrogate pair; repair the text') from error
