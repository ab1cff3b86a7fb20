"""Rows of the parquet files that training reads, from questions with their gold answers, and the files themselves.

A row has the columns that verl documents for RL data (prompt, data_source, reward_model, extra_info), plus `question`
(the published prompt_key), the agent loop that answers it, and the supporting documents as `metadata`, as evaluation
reads them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flashrag.errors import UserError
from flashrag.metrics import named_support
from flashrag.questions import Question
from flashrag.system.files import staged


def qa_rows(
    questions: Iterable[Question], split: str, data_source: str | Callable[[Question], str]
) -> list[dict[str, Any]]:
    """A row for each question; texts are kept verbatim, so that evaluation on the same question builds the same prompt.

    Validation reports each `data_source` apart; a function gives that of each question.
    """
    return [
        {
            "data_source": data_source if isinstance(data_source, str) else data_source(question),
            "question": question.question,
            "ability": "question_answering",
            "reward_model": {"style": "rule", "ground_truth": list(question.golden_answers)},
            "extra_info": {"id": question.id, "index": index, "split": split},
            "prompt": [{"role": "user", "content": question.question}],
            "agent_name": "search_agent",  # the name under which verl_search registers its agent loop
            "metadata": named_support(question.metadata),
        }
        for index, question in enumerate(questions)
    ]


def write_parquet_files(rows_by_path: Mapping[Path, Sequence[Mapping[str, Any]]]) -> None:
    """Write several files: each is complete before the first takes its name, and on an error none is written.

    Creates missing folders. An earlier file of the same name is replaced. Raises `UserError` when a file would have
    no rows (a table without rows has no columns either) or its folder cannot be written.
    """
    import pyarrow as pa  # here, so that a command reports bad input before the slow import
    import pyarrow.parquet as pq

    with ExitStack() as files:
        for path, rows in rows_by_path.items():
            if not rows:
                raise UserError(f"no rows to write to {path}")
            try:
                table = pa.Table.from_pylist(list(rows))
                pq.write_table(table.cast(_typed(table.schema)), files.enter_context(staged(path)))
            except OSError as error:
                raise UserError(
                    f"cannot write {error.filename or path}: {error.strerror}; choose a writable folder"
                ) from error


def _typed(schema: Any) -> Any:
    """The schema with texts in all of `metadata`: without it, a file in which no support is named has another one."""
    import pyarrow as pa

    column = schema.get_field_index("metadata")
    if column < 0:
        return schema
    texts = pa.struct([(part.name, pa.list_(pa.string())) for part in schema.field(column).type])
    return schema.set(column, pa.field("metadata", texts))
