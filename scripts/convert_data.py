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
    gib,
    note,
    output_folder,
    question_findings,
    show_check,
)
from flashrag.questions import Question, QuestionFile
from flashrag.records import Record, read_records
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged

PROGRAM = "python scripts/convert_data.py"
MOST_SHOWN = 1000  # characters of a line
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog=PROGRAM, description="Convert a data set's original file to FlashRAG's jsonl.")
    add = parser.add_argument
    add("dataset", choices=sorted(METADATA), help="data set that the file is from")
    add("source", type=Path, help="original file: .json, .jsonl, .parquet, .csv or .tsv")
    add("--split", required=True, metavar="NAME", help="split to write: {data_dir}/{dataset}/{split}.jsonl")
    add("--data_dir", type=Path, default=Path("data"), help="folder of the converted data sets")
    add("--check", action="store_true", help=CHECK_HELP)
    arguments = sys.argv[1:] if argv is None else argv
    facts = ConversionFacts(arguments, **vars(parser.parse_args(arguments)))
    findings = examine(RULES, facts)
    if facts.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    questions = facts.file.questions
    with staged(facts.target) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(f"{_line(question)}\n" for question in questions)
    print(f"{len(questions)} questions -> {facts.target}")
    return 0


class ConversionFacts(MachineFacts):
    """What there is to know about the file that is read and the one that is written."""

    def __init__(
        self, arguments: Sequence[str], dataset: str, source: Path, split: str, data_dir: Path, check: bool
    ) -> None:
        self.arguments, self.check = arguments, check
        self.dataset, self.source, self.split = dataset, source, split
        self.target = data_dir / dataset / f"{split}.jsonl"

    @fact
    def file(self) -> QuestionFile:
        """The questions of the split, in the file's order; raises a `UserError` that names the first bad records."""
        records = _table(self.source) if self.source.suffix in DELIMITERS else read_records(self.source)
        metadata_of = partial(_metadata, self.dataset)
        return QuestionFile.read(self.source, id_prefix=self.split, records=records, metadata_of=metadata_of)

    @property
    def needed_bytes(self) -> int:
        """About what the source has."""
        return self.source.stat().st_size if self.source.is_file() else 0


def _line(question: Question) -> str:
    return json.dumps(asdict(question), ensure_ascii=False)


def source_is_read(facts: ConversionFacts) -> Iterator[Finding]:
    yield from question_findings(facts.file)
    expected, count = DATASETS[facts.dataset].rows.get(facts.split), len(facts.file.questions)
    if expected not in (None, count):
        yield note(f"{facts.source} has {count} questions; FlashRAG's {facts.split} split has {expected}")


def target_can_be_written(facts: ConversionFacts) -> Iterator[Finding]:
    target = facts.target
    if target.exists():
        yield error(f"{target} exists already; remove it, or give another split or data_dir")
        return
    yield from output_folder("--data_dir", target.parent, facts.needed_bytes, "the questions")


def _first_line(facts: ConversionFacts) -> str:
    line = _line(facts.file.questions[0])
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}… ({len(line)} characters)"


RULES: Mapping[str, Rule[ConversionFacts]] = {
    "data.source": source_is_read,
    "data.target": target_can_be_written,
    **MACHINE_RULES,
}
PLAN: Plan[ConversionFacts] = {
    "read": {"data set": lambda facts: facts.dataset, "file": lambda facts: f"{facts.source}: {facts.file}"},
    "write": {
        "file": lambda facts: f"{facts.target.absolute()}: {len(facts.file.questions)} lines",
        "columns": lambda facts: ", ".join(asdict(facts.file.questions[0])),
        "first line": _first_line,
        "disk": lambda facts: f"about {gib(facts.needed_bytes)} of {gib(free_bytes(facts.target))} free",
    },
    "run": {"command": lambda facts: checked_command(PROGRAM, facts.arguments)},
}


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
