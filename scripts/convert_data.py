"""A data set's original file as FlashRAG's jsonl: `python scripts/convert_data.py hotpotqa FILE --split dev`.

Originals: HotpotQA (official json, or the hub's variant), 2WikiMultihopQA (json), MuSiQue (jsonl), Bamboogle (csv, tsv
or json), StrategyQA (json), NQ-open (jsonl), TriviaQA (json), PopQA (tsv). Each may also be a json list or jsonl of the
same records. Texts are kept as they are. Does not cover: fetching (download_data.py), training rows (training/).
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from flashrag.dataset import DATASETS, read_questions
from flashrag.errors import UserError, exit_on_user_error
from flashrag.questions import parse_gold_answers
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged


class Row(NamedTuple):
    """A line of FlashRAG's jsonl; a record without an id gets one from its split and number."""

    id: Any
    question: Any
    golden_answers: Any
    metadata: dict[str, Any]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="scripts/convert_data.py", description="Convert a data set's original file to FlashRAG's jsonl."
    )
    add = parser.add_argument
    add("dataset", choices=sorted(CONVERTERS), help="data set that the file is from")
    add("source", type=Path, help="original file, decompressed: .json, .jsonl, .csv or .tsv")
    add("--split", required=True, metavar="NAME", help="split to write: {data_dir}/{dataset}/{split}.jsonl")
    add("--data_dir", type=Path, default=Path("data"), help="folder of the converted data sets")
    options = parser.parse_args(argv)
    target = options.data_dir / options.dataset / f"{options.split}.jsonl"
    if target.exists():
        raise UserError(f"{target} exists already; remove it, or give another split or data_dir")
    rows = convert(options.dataset, read_records(options.source), options.split, options.source)
    with staged(target) as path:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        read_questions(path)  # what is written can be read: ids are unique, answers are there
    expected = DATASETS[options.dataset].rows.get(options.split)
    note = f" (FlashRAG's {options.split} split has {expected})" if expected not in (None, len(rows)) else ""
    print(f"{len(rows)} questions -> {target}{note}")
    return 0


def convert(dataset: str, records: Sequence[Any], split: str, source: object = "the file") -> list[dict[str, Any]]:
    """The rows of one split, in the file's order; raises `UserError` for the first bad record, by number from 1.

    MuSiQue's unanswerable twins are left out: they have the answer of a question that they do not allow to answer.
    """
    rows = []
    for index, record in enumerate(records):
        place = f"{source}: record {index + 1}"
        try:
            row = CONVERTERS[dataset](record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{place} is no {dataset} record ({type(error).__name__}: {error})") from error
        if row is None:
            continue
        answers = list(parse_gold_answers(row.golden_answers))
        if not answers or not isinstance(row.question, str):
            raise UserError(f"{place} has no question with an answer; is it a file with labels?")
        rows.append({**row._asdict(), "id": str(row.id or f"{split}_{index}"), "golden_answers": answers})
    return rows


def _kept(record: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys if key in record}


def _hotpotqa(record: Mapping[str, Any]) -> Row:
    """Supporting facts and context in the hub's shape, whichever of the two the file has."""
    facts, context = record.get("supporting_facts") or [], record.get("context") or []
    if not isinstance(facts, Mapping):
        facts = {"title": [fact[0] for fact in facts], "sent_id": [fact[1] for fact in facts]}
    if not isinstance(context, Mapping):
        context = {"title": [title for title, _ in context], "sentences": [sentences for _, sentences in context]}
    metadata = {**_kept(record, "type", "level"), "supporting_facts": dict(facts), "context": dict(context)}
    return Row(record.get("_id") or record.get("id"), record["question"], record["answer"], metadata)


def _musique(record: Mapping[str, Any]) -> Row | None:
    if not record.get("answerable", True):
        return None
    answers = [record["answer"], *record.get("answer_aliases", [])]
    hops = int(record["id"].partition("hop")[0])  # an id begins with their number: 2hop__…, 3hop1__…
    return Row(record["id"], record["question"], answers, {"hops": hops, "paragraphs": record["paragraphs"]})


def _bamboogle(record: Mapping[str, Any]) -> Row:
    fields = {key.strip().lower(): value for key, value in record.items()}
    return Row(fields.get("id"), fields["question"], fields["answer"], {})


def _strategyqa(record: Mapping[str, Any]) -> Row:
    if not isinstance(record["answer"], bool):
        raise ValueError(f"answer is {record['answer']!r}, expected true or false")
    metadata = _kept(record, "term", "facts", "decomposition")
    return Row(record.get("qid"), record["question"], record["answer"], metadata)


def _nq(record: Mapping[str, Any]) -> Row:
    return Row(None, record["question"], record["answer"], {})


def _triviaqa(record: Mapping[str, Any]) -> Row:
    answer = record["Answer"]
    return Row(record["QuestionId"], record["Question"], [answer["Value"], *answer.get("Aliases", [])], {})


def _popqa(record: Mapping[str, Any]) -> Row:
    titles = [record["s_wiki_title"]] if record.get("s_wiki_title") else []
    answers = json.loads(record["possible_answers"])  # a JSON list inside the table's cell
    metadata = {**_kept(record, "subj", "prop", "obj"), "supporting_titles": titles}
    return Row(record["id"], record["question"], answers, metadata)


CONVERTERS: Mapping[str, Callable[[Any], Row | None]] = {
    "hotpotqa": _hotpotqa,
    "2wikimultihopqa": _hotpotqa,  # the same layout
    "musique": _musique,
    "bamboogle": _bamboogle,
    "strategyqa": _strategyqa,
    "nq": _nq,
    "triviaqa": _triviaqa,
    "popqa": _popqa,
}


def read_records(path: Path) -> list[Any]:
    """The records of a .json (a list, or TriviaQA's {"Data": […]}), .jsonl, .csv or .tsv file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; give the original file, decompressed") from error
    try:
        records = list(_parse(path, text))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is no {path.suffix} file: {error}; download it again") from error
    if not records:
        raise UserError(f"{path} holds no record")
    return records


def _parse(path: Path, text: str) -> Iterator[Any]:
    match path.suffix:
        case ".jsonl":
            yield from (json.loads(line) for line in text.split("\n") if line.strip())
        case ".json":
            content = json.loads(text)
            yield from content["Data"] if isinstance(content, dict) and "Data" in content else content
        case ".csv" | ".tsv":
            delimiter = "," if path.suffix == ".csv" else "\t"
            yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        case suffix:
            raise ValueError(f"its name ends with {suffix!r}, expected .json, .jsonl, .csv or .tsv")


if __name__ == "__main__":
    sys.exit(main())
