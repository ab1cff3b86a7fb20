"""How well retrievers find gold passages: `python scripts/bench/retrieval_quality.py --config b.yaml … --questions …`

A configuration holds FlashRAG's retrieval keys (a server's will do); a question names its gold passages in
`metadata.golden_doc_ids`. Recall@k of a question is the share of its gold passages among the first k; figures are means
over questions. Prints a Markdown table, and one line of JSON last.
Does not cover: speed (retrieval.py, index_types.py).
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/bench
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flashrag.config import Config
from flashrag.corpus import Corpus
from flashrag.errors import UserError, exit_on_user_error
from flashrag.retriever import Retriever, load_retriever
from flashrag.system.arguments import CommandParser
from scripts.bench.markdown import markdown_table

CUTS = (2, 5)
QUERIES_PER_CALL = 256


@dataclass(frozen=True)
class Question:
    text: str
    gold: frozenset[str]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(description="Recall of retrievers on questions with gold passages.")
    add = parser.add_argument
    add("--config", type=Path, nargs="+", required=True, help="yaml with FlashRAG's retrieval keys, one per retriever")
    add("--questions", type=Path, nargs="+", required=True, help="jsonl with metadata.golden_doc_ids, one per data set")
    args = parser.parse_args(argv)
    data_sets = {path.stem: read_questions(path) for path in args.questions}
    figures = {path.stem: measure(path, data_sets) for path in args.config}
    print(_table(figures, {name: len(questions) for name, questions in data_sets.items()}))
    print(json.dumps({"recall": figures, "questions": {name: len(rows) for name, rows in data_sets.items()}}))
    return 0


def read_questions(path: Path) -> list[Question]:
    """Raises UserError naming the first line without question or gold passages."""
    questions: list[Question] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                gold = frozenset(map(str, record["metadata"]["golden_doc_ids"]))
                if not gold:
                    raise ValueError("no gold passage")
                questions.append(Question(record["question"], gold))
    except OSError as error:
        raise UserError(f"--questions: {path} cannot be read ({error.strerror}); give jsonl files") from error
    except (ValueError, KeyError, TypeError) as error:
        expected = '{"question": …, "metadata": {"golden_doc_ids": [id, …]}}'
        raise UserError(f"--questions: {path} line {len(questions) + 1}: {error!r:.80}; expected {expected}") from error
    if not questions:
        raise UserError(f"--questions: {path} holds no questions")
    return questions


def measure(config: Path, data_sets: dict[str, list[Question]]) -> dict[str, dict[str, float]]:
    """Recall by data set and cut, of one retriever."""
    from tqdm import tqdm

    retriever = load_retriever(Config(str(config)))
    _check_gold(retriever, data_sets)
    figures = {}
    for name, questions in data_sets.items():
        found = []
        for start in tqdm(range(0, len(questions), QUERIES_PER_CALL), desc=f"{config.stem} {name}", leave=False):
            texts = [question.text for question in questions[start : start + QUERIES_PER_CALL]]
            found += [[hit.document.id for hit in hits] for hits in retriever.rank(texts, max(CUTS))]
        figures[name] = {f"recall@{cut}": mean_recall(questions, found, cut) for cut in CUTS}
    return figures


def mean_recall(questions: Sequence[Question], found: Sequence[Sequence[str]], cut: int) -> float:
    """The mean over questions of the share of gold passages among the first `cut` ids.

    >>> mean_recall([Question("", frozenset("ab")), Question("", frozenset("c"))], [["a", "x", "b"], ["c"]], 2)
    0.75
    """
    shares = [len(one.gold & set(ids[:cut])) / len(one.gold) for one, ids in zip(questions, found, strict=True)]
    return sum(shares) / len(shares)


def _check_gold(retriever: Retriever, data_sets: dict[str, list[Question]]) -> None:
    """A gold passage that the corpus does not hold would lower every figure without a word."""
    corpus = retriever.corpus
    if not isinstance(corpus, Corpus):  # a remote retriever's stands elsewhere
        return
    ids = {corpus[row].id for row in range(len(corpus))}
    for name, questions in data_sets.items():
        absent = {identifier for question in questions for identifier in question.gold} - ids
        if absent:
            raise UserError(
                f"--questions: {len(absent)} gold passages of {name} are not in the corpus ({min(absent)!r}, …); "
                "give the corpus that the questions were made for"
            )


def _table(figures: dict[str, dict[str, dict[str, float]]], sizes: dict[str, int]) -> str:
    header = ["data set", "questions", *(f"{name} recall@{cut}" for name in figures for cut in CUTS)]
    rows = [
        [name, size, *(f"{figures[one][name][f'recall@{cut}']:.3f}" for one in figures for cut in CUTS)]
        for name, size in sizes.items()
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
