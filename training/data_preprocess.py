"""Question sets into the parquet files that training reads: one set or a mix, from the files that the evaluation reads.

train.parquet has the questions of the train sets, as often as their weights say; test.parquet has a seeded sample of
each dev set. Rows name their set as `data_source`. No question is in both. What a record may look like:
flashrag.questions. Does not cover: downloading (scripts/download_data.py), passages, prompts.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from flashrag.dataset import random_sample
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
    gathered,
    gib,
    output_folder,
    question_findings,
    show_check,
    warning,
)
from flashrag.questions import Question, QuestionFile, same_question_key
from flashrag.system.arguments import flag, parse_options
from flashrag.system.machine import versions_in_words
from training.qa_rows import qa_rows, write_parquet_files
from training.question_filters import FilterOptions, Selection, answers_found, in_words, not_among, select
from training.question_sets import SET, QuestionSet, SetOptions, read_sets, set_name, with_own_ids

if TYPE_CHECKING:
    from flashrag.client import RetrievalServers

PROGRAM = "python training/data_preprocess.py"
ALL = -1
ROW_BYTES = 200  # of a row without its question


@dataclass(frozen=True, kw_only=True)
class Options(FilterOptions, SetOptions):
    """Turn question sets into train.parquet and test.parquet for training/run.sh.

    A SET is NAME (in --data_dir: its train split, or the one that is evaluated), NAME/SPLIT, or NAME=FILE. NAME becomes
    the data_source of its rows. A train set may have a weight: nq musique:0.5 own=my/questions.jsonl:2 takes each
    question of nq once, a seeded half of musique, and each question of own twice.
    """

    output_dir: Path = flag("folder of train.parquet and test.parquet", group="output")
    check: bool = flag(CHECK_HELP, False, group="output")
    as_given: bool = False  # no flag: questions that train and dev share stay, and so does every id


class DataFacts(MachineFacts):
    """What there is to know about the files that are read and written; `command` is the one to repeat."""

    def __init__(self, options: Options, command: str) -> None:
        self.options, self.command = options, command
        self.train_sets, self.dev_sets = dict.fromkeys(options.train), dict.fromkeys(options.dev or ())
        self.dev_names = {one.name for one in self.dev_sets}

    @fact
    def train(self) -> list[QuestionFile]:
        return read_sets(self.train_sets, self.options.data_dir, "train")

    @fact
    def dev(self) -> list[QuestionFile]:
        return read_sets(self.dev_sets, self.options.data_dir, "dev")

    @fact
    def sample_size(self) -> int:
        if (size := self.options.dev_sample_size) < 1 and size != ALL:
            raise UserError(f"--dev_sample_size is {size}, expected 1 or more, or -1 for all")
        return size

    @fact
    def parted(self) -> tuple[list[Question], list[Question]]:
        """Every train question, and every dev question with those that are held out."""
        train, dev = [], [question for file in self.dev for question in file.questions]
        for one, file in zip(self.train_sets, self.train, strict=True):
            size = 0 if one.name in self.dev_names else self.options.hold_out or 0
            held = set(random_sample(range(len(file.questions)), size, self.options.seed))
            for index, question in enumerate(file.questions):
                (dev if index in held else train).append(question)
        return train, dev

    @fact
    def selected(self) -> Selection:
        """What every filter but the search leaves of the train questions."""
        train, dev = self.parted
        apart = {} if self.options.as_given else {"dev questions, too": not_among(dev)}
        return select(train, {**apart, **self.options.filters()})

    @fact
    def servers(self) -> "RetrievalServers | None":
        """None where no search is made."""
        url, top_n = self.options.search_url, self.options.search_top_n
        if url is None:
            return None
        from flashrag.client import ANY_QUERY, ask_servers

        return ask_servers(url, ANY_QUERY, top_n, "search_url")

    @fact
    def searched(self) -> Selection:
        """What the search leaves of them; it takes its time."""
        questions, top_n = self.selected.kept, self.options.search_top_n
        found = asyncio.run(answers_found(questions, self.options.search_url or "", top_n))
        reason = f"without a gold answer in the first {top_n} passages found"
        return select(questions, {reason: lambda question: found[id(question)] != 0})

    @fact
    def rows(self) -> Mapping[Path, list[dict[str, Any]]]:
        """The rows of each file that will be written, if a search leaves out none of them."""
        return self.rows_of(self.selected)

    def rows_of(self, selection: Selection) -> Mapping[Path, list[dict[str, Any]]]:
        options, (_, dev), taken = self.options, self.parted, set()
        kept = {one: list(group) for one, group in groupby(selection.kept, lambda question: question.metadata[SET])}
        train = [question for one in kept for question in one.weighted(kept[one], options.seed)]
        if not options.as_given:
            dev, train = with_own_ids(dev, "dev", taken), with_own_ids(train, "train", taken)
        return {
            options.output_dir / "train.parquet": qa_rows(train, "train", set_name),
            options.output_dir / "test.parquet": list(self._sampled(qa_rows(dev, "dev", set_name))),
        }

    def _sampled(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """A sample of each set of --dev, and every row that was held out."""
        for name, group in groupby(rows, lambda row: row["data_source"]):
            of_set = list(group)
            size = self.sample_size if name in self.dev_names and self.sample_size != ALL else len(of_set)
            yield from random_sample(of_set, size, self.options.seed)

    @property
    def written_bytes(self) -> int:
        """About what is written: each text stands there twice, and parquet packs it."""
        return sum(len(row["question"].encode()) * 2 + ROW_BYTES for rows in self.rows.values() for row in rows)


def flags_fit(facts: DataFacts) -> Iterator[Finding]:
    given = facts.options
    for one in facts.dev_sets:
        if one.weight != 1:
            yield error(f"--dev {one}: only --train takes a weight; leave it out, and see --dev_sample_size")
    if not facts.dev_sets and given.hold_out is None:
        yield error("there is no question to validate on; give --dev SET, or --hold_out N")
    if given.hold_out is not None and facts.dev_names.issuperset(one.name for one in facts.train_sets):
        yield error(f"--hold_out {given.hold_out} takes no question, because --dev names each train set; leave one out")
    if (given.pass_rate_from is not None) is ((given.min_pass_rate, given.max_pass_rate) == (0, 1)):
        yield error("--pass_rate_from goes with --min_pass_rate or --max_pass_rate; give both, or neither")


def files_are_read(role: str) -> Rule[DataFacts]:
    return lambda facts: chain.from_iterable(map(question_findings, getattr(facts, role)))


def files_are_apart(facts: DataFacts) -> Iterator[Finding]:
    if not facts.options.as_given:
        return
    train, test = facts.rows.values()
    train_questions = {same_question_key(row["question"]) for row in train}
    if shared := sum(same_question_key(row["question"]) in train_questions for row in test):
        yield warning(
            f"{shared} of the {len(test)} dev questions are training questions too: validation will look too good; "
            "give another dev file"
        )


def servers_answer(facts: DataFacts) -> Iterator[Finding]:
    if facts.servers is not None:
        from flashrag.client import server_findings

        url, top_n = facts.options.search_url, facts.options.search_top_n
        yield from server_findings(facts.servers, url, "search_url", top_n, "--search_top_n")


def output_can_be_written(facts: DataFacts) -> Iterator[Finding]:
    folder = facts.options.output_dir
    if folder.exists() and not folder.is_dir():
        yield error(f"--output_dir {folder} is a file; give a folder")
        return
    yield from output_folder("--output_dir", folder, lambda: facts.written_bytes, "the rows")


RULES: Mapping[str, Rule[DataFacts]] = {
    "data.flags": flags_fit,
    "data.sample": gathered("sample_size"),
    "data.train": files_are_read("train"),
    "data.dev": files_are_read("dev"),
    "data.overlap": files_are_apart,
    "data.left_out": lambda facts: facts.selected.findings(facts.train_sets),
    "data.server": servers_answer,
    "data.output": output_can_be_written,
    **MACHINE_RULES,
}
SEARCH_RULES: Mapping[str, Rule[DataFacts]] = {"data.search": lambda facts: facts.searched.findings(facts.train_sets)}


def _read(sets: Iterable[QuestionSet], files: Sequence[QuestionFile]) -> str:
    read = (f"{one.name}: {file.path}: {file}" for one, file in zip(sets, files, strict=True))
    return "\n    ".join(read) or "none"


def _by_set(rows: Sequence[Mapping[str, Any]]) -> str:
    return in_words(Counter(row["data_source"] for row in rows))


def _written(facts: DataFacts) -> str:
    return ", ".join(f"{path.absolute()}: {len(rows)} rows" for path, rows in facts.rows.items())


def _first_row(facts: DataFacts) -> dict[str, Any]:
    if not (rows := next(iter(facts.rows.values()))):
        raise UserError("no train question is left")
    return rows[0]


PLAN: Plan[DataFacts] = {
    "read": {
        "train": lambda facts: _read(facts.train_sets, facts.train),
        "dev": lambda facts: _read(facts.dev_sets, facts.dev),
        "search": lambda facts: f"for {len(facts.selected.kept)} questions" if facts.options.search_url else "none",
    },
    "write": {
        "files": _written,
        "sets": lambda facts: "; ".join(f"{path.name}: {_by_set(rows)}" for path, rows in facts.rows.items()),
        "columns": lambda facts: ", ".join(_first_row(facts)),
        "first row": lambda facts: json.dumps(_first_row(facts), ensure_ascii=False),
        "disk": lambda facts: f"about {gib(facts.written_bytes)} of {gib(free_bytes(facts.options.output_dir))} free",
    },
    "run": {
        "command": lambda facts: facts.command,
        "versions": lambda _: versions_in_words(("flashrag", "pyarrow")),
    },
}


def prepare(options: Options, program: str, arguments: Sequence[str]) -> int:
    """Check everything, search if that is wanted, and write both files; returns the command's exit code."""
    facts = DataFacts(options, checked_command(program, arguments))
    findings = examine(RULES, facts)
    if options.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    rows = facts.rows
    if options.search_url is not None:
        enforce(examine(SEARCH_RULES, facts))
        rows = facts.rows_of(facts.searched)
    write_parquet_files(rows)
    (train_path, train), (test_path, test) = rows.items()
    print(f"{train_path}: {len(train)} questions ({_by_set(train)})")
    print(f"{test_path}: {len(test)} of {len(facts.parted[1])} dev questions ({_by_set(test)})")
    return 0


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    return prepare(parse_options(Options, PROGRAM, arguments), PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
