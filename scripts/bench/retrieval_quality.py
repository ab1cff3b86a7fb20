"""How well retrievers find gold passages: `python scripts/bench/retrieval_quality.py --config b.yaml … --questions …`

A configuration holds FlashRAG's retrieval keys (a server's will do); a question names its gold passages in
`metadata.golden_doc_ids`. Recall@k of a question is the share of its gold passages among the first k; figures are means
over questions. Prints a Markdown table, and one line of JSON last.
Does not cover: speed (retrieval.py, index_types.py).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/bench
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tqdm import tqdm

from evaluation.report.tables import markdown_table
from flashrag.config import Config
from flashrag.corpus import Corpus
from flashrag.errors import UserError, exit_on_user_error
from flashrag.metrics import support_coverage
from flashrag.questions import Question, question_text, read_each
from flashrag.records import Record, read_records
from flashrag.retriever import load_retriever, prepare_process
from flashrag.system.arguments import flag, parse_options

CUTS = (2, 5)
DataSets = Mapping[str, Sequence[Question]]


@dataclass(frozen=True)
class QualityOptions:
    """Measure the recall of retrievers on questions with gold passages."""

    config: Sequence[Path] = flag("yaml with FlashRAG's retrieval keys, one per retriever")
    questions: Sequence[Path] = flag("jsonl with metadata.golden_doc_ids, one per data set")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(QualityOptions, "python scripts/bench/retrieval_quality.py", argv)
    data_sets = {path.stem: read_each(read_records(path), path, gold_question) for path in options.questions}
    recall = {path.stem: measure(path, data_sets) for path in options.config}
    sizes = {name: len(questions) for name, questions in data_sets.items()}
    columns = [(retriever, f"recall@{cut}") for retriever in recall for cut in CUTS]
    rows = [[name, str(n), *(f"{recall[one][name][cut]:.3f}" for one, cut in columns)] for name, n in sizes.items()]
    print(markdown_table(["data set", "questions", *map(" ".join, columns)], rows))
    print(json.dumps({"recall": recall, "questions": sizes}))
    return 0


def gold_question(record: Record, *_: object) -> Question:
    """Needs no answers; raises UserError where question or gold passages are missing."""
    match record.content:
        case {"question": text, "metadata": {"golden_doc_ids": [_, *_]} as metadata}:
            return Question(record.place, question_text(text), (), metadata)
    raise UserError('expected {"question": …, "metadata": {"golden_doc_ids": [id, …]}}')


def measure(config: Path, data_sets: DataSets) -> dict[str, dict[str, float]]:
    """The recall of one retriever, by data set and cut."""
    prepare_process()
    retriever, figures = load_retriever(Config(str(config))), {}
    if isinstance(retriever.corpus, Corpus):  # a remote retriever's cannot be read from here
        check_gold(retriever.corpus, data_sets)
    for name, questions in tqdm(data_sets.items(), config.stem, leave=False):
        ranked = retriever.rank([question.question for question in questions], max(CUTS))
        found = [[hit.document.id for hit in hits] for hits in ranked]
        figures[name] = {f"recall@{cut}": mean_recall(questions, found, cut) for cut in CUTS}
    return figures


def mean_recall(questions: Sequence[Question], found: Sequence[Sequence[str]], cut: int) -> float:
    """The mean over questions of the share of gold passages among the first `cut` ids."""
    return mean(support_coverage(one.metadata, ids[:cut], ()) or 0.0 for one, ids in zip(questions, found, strict=True))


def check_gold(corpus: Corpus, data_sets: DataSets) -> None:
    """Raises UserError for a gold passage that the corpus does not hold: it would silently lower every figure."""
    ids = {corpus[row].id for row in range(len(corpus))}
    for name, questions in data_sets.items():
        if absent := {str(gold) for question in questions for gold in question.metadata["golden_doc_ids"]} - ids:
            problem = f"{len(absent)} gold passages of {name} are not in the corpus ({min(absent)!r}, …)"
            raise UserError(f"--questions: {problem}; give the corpus that the questions were made for")


if __name__ == "__main__":
    sys.exit(main())
