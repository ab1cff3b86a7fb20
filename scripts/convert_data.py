"""A data set's original file as FlashRAG's jsonl: `python scripts/convert_data.py hotpotqa FILE --split dev`.

Originals: HotpotQA (official json, or the hub's variant), 2WikiMultihopQA (json), MuSiQue (jsonl), Bamboogle (csv, tsv
or json), StrategyQA (json), NQ-open (jsonl), TriviaQA (json), PopQA (tsv). Each may also be any other file of the same
records that flashrag.records reads. Texts are kept as they are; what a record says is read by flashrag.questions, and
this adds the metadata. Does not cover: fetching (download_data.py), training rows (training/).
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from flashrag.dataset import DATASETS
from flashrag.errors import UserError, exit_on_user_error
from flashrag.questions import Question, read_questions
from flashrag.records import Record, read_records
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged

DELIMITERS = {".csv": ",", ".tsv": "\t"}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="scripts/convert_data.py", description="Convert a data set's original file to FlashRAG's jsonl."
    )
    add = parser.add_argument
    add("dataset", choices=sorted(METADATA), help="data set that the file is from")
    add("source", type=Path, help="original file: .json, .jsonl, .parquet, .csv or .tsv")
    add("--split", required=True, metavar="NAME", help="split to write: {data_dir}/{dataset}/{split}.jsonl")
    add("--data_dir", type=Path, default=Path("data"), help="folder of the converted data sets")
    options = parser.parse_args(argv)
    target = options.data_dir / options.dataset / f"{options.split}.jsonl"
    if target.exists():
        raise UserError(f"{target} exists already; remove it, or give another split or data_dir")
    questions = convert(options.dataset, options.source, options.split)
    with staged(target) as path:
        lines = (json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions)
        path.write_text("".join(lines), encoding="utf-8")
    expected = DATASETS[options.dataset].rows.get(options.split)
    note = f" (FlashRAG's {options.split} split has {expected})" if expected not in (None, len(questions)) else ""
    print(f"{len(questions)} questions -> {target}{note}")
    return 0


def convert(dataset: str, source: Path, split: str) -> list[Question]:
    """The questions of one split, in the file's order; raises a `UserError` that names the first bad records."""
    records = _table(source) if source.suffix in DELIMITERS else read_records(source)
    return read_questions(source, split, records=records, metadata_of=partial(_metadata, dataset))


def _metadata(dataset: str, record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return METADATA[dataset](record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"is no {dataset} record ({type(error).__name__}: {error})") from error


def _kept(record: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys if key in record}


def _hotpotqa(record: Mapping[str, Any]) -> dict[str, Any]:
    """Supporting facts and context in the hub's shape, whichever of the two the file has."""
    facts, context = record.get("supporting_facts") or [], record.get("context") or []
    if not isinstance(facts, Mapping):
        facts = {"title": [fact[0] for fact in facts], "sent_id": [fact[1] for fact in facts]}
    if not isinstance(context, Mapping):
        context = {"title": [title for title, _ in context], "sentences": [sentences for _, sentences in context]}
    return {**_kept(record, "type", "level"), "supporting_facts": dict(facts), "context": dict(context)}


def _musique(record: Mapping[str, Any]) -> dict[str, Any]:
    hops = int(record["id"].partition("hop")[0])  # an id begins with their number: 2hop__…, 3hop1__…
    return {"hops": hops, "paragraphs": record["paragraphs"]}


def _strategyqa(record: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(record["answer"], bool):
        raise ValueError(f"answer is {record['answer']!r}, expected true or false")
    return _kept(record, "term", "facts", "decomposition")


def _popqa(record: Mapping[str, Any]) -> dict[str, Any]:
    titles = [record["s_wiki_title"]] if record.get("s_wiki_title") else []
    return {**_kept(record, "subj", "prop", "obj"), "supporting_titles": titles}


METADATA: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "hotpotqa": _hotpotqa,
    "2wikimultihopqa": _hotpotqa,  # the same layout
    "musique": _musique,
    "bamboogle": _kept,
    "strategyqa": _strategyqa,
    "nq": _kept,
    "triviaqa": _kept,
    "popqa": _popqa,
}


def _table(path: Path) -> Iterator[Record]:
    """The rows of a .csv or .tsv file, whose first line names the columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter=DELIMITERS[path.suffix], strict=True), start=1):
                yield Record(f"row {number}", {str(name).strip(): cell for name, cell in row.items()})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}; give the original file") from error


if __name__ == "__main__":
    sys.exit(main())
