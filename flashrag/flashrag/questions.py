"""Questions with their gold answers, from a record of any of the field's data sets.

Preparation, the check before training, training's reward and the evaluation read questions here and nowhere else, so
that one file means the same to each of them. Names of fields are compared in lower case; null is as good as absent.

question  `question`, verl's `extra_info.question`, or `prompt`: a text, or chat messages with one of the user
answers   verl's `reward_model.ground_truth`, `golden_answers`, `gold_answers`, `answers` or `answer`, each in any shape
          that `parse_gold_answers` takes, or PopQA's `possible_answers`, JSON in a text; MuSiQue's `answer_aliases`
          count too
id        verl's `extra_info.id`, `_id`, `id`, `qid` or `question_id`: a text or a number; else given by the caller

Sources: FlashRAG's, Search-R1's and verl's documented formats; the files of HotpotQA, 2WikiMultihopQA, MuSiQue,
StrategyQA, Bamboogle, NQ-open, TriviaQA, PopQA and SQuAD. Does not cover: opening files (records.py).
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Self, TypeVar

from flashrag.errors import UserError
from flashrag.metrics import normalize_answer
from flashrag.records import Record, read_records, record_file_stem

T = TypeVar("T")
_QUESTION_FIELDS = ("question", "extra_info.question", "prompt")
_JSON_FIELD = "possible_answers"
_ANSWER_FIELDS = ("reward_model.ground_truth", "golden_answers", "gold_answers", "answers", "answer", _JSON_FIELD)
_ID_FIELDS = ("extra_info.id", "_id", "id", "qid", "question_id", "questionid")
_OTHER_FIELDS = ("answer_aliases", "answerable", "choices", "metadata")
FIELDS = frozenset(name.partition(".")[0] for name in (*_QUESTION_FIELDS, *_ANSWER_FIELDS, *_ID_FIELDS, *_OTHER_FIELDS))
EXPECTED_ANSWERS = "expected a text that is not blank, a number, true or false, or a list of them"
RECORDS = "records"
MOST_NAMED = 5  # bad records in one message
_MOST_SHOWN = 100  # characters of a bad value


@dataclass(frozen=True, slots=True)
class Question:
    """One question with all of its gold answers."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def same_question_key(question: str) -> str:
    """The same for texts that ask the same question: they differ in case, punctuation, articles or white space alone.

    >>> same_question_key("Who led the  Zhou?") == same_question_key("who led Zhou"), same_question_key("?")
    (True, '?')
    """
    return normalize_answer(question) or question.strip()


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """All questions of a file, and what `read_each` counted."""

    path: Path
    questions: list[Question]
    counts: Counter[str]

    @classmethod
    def read(cls, path: Path, **keywords: Any) -> Self:
        """As `read_questions`, with its keywords."""
        counts: Counter[str] = Counter()
        return cls(path, read_questions(path, counts=counts, **keywords), counts)

    @property
    def left_out(self) -> str:
        """What was left out of the records, for people; "" if nothing was."""
        return ", ".join(f"{times} {what}" for what, times in self.counts.items() if what != RECORDS)

    def __str__(self) -> str:
        return f"{len(self.questions)} questions of {self.counts[RECORDS]} records; left out: {self.left_out or 'none'}"


def parse_metadata(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """FlashRAG's `metadata` of a record, {} if there is none; raises `UserError` if it is not an object."""
    metadata = record.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UserError(f"metadata: {_shown(metadata)} was given; expected an object, or nothing")
    return metadata or {}


def read_questions(
    path: Path,
    id_prefix: str | None = None,
    *,
    records: Iterable[Record] | None = None,
    metadata_of: Callable[[Mapping[str, Any]], Mapping[str, Any]] = parse_metadata,
    counts: Counter[str] | None = None,
) -> list[Question]:
    """Every question of a file, each with an id of its own; raises a `UserError` that names the first bad records.

    A record without an id gets `{id_prefix}_{index}`, counted from 0; the prefix is by default the file's name. Records
    that say `answerable: false` are left out: MuSiQue's unanswerable twins have the answer of a question that they do
    not allow to answer. By default the records are read by `read_records`, of a parquet file only the columns needed.
    `counts` is as in `read_each`.
    """
    prefix = id_prefix or record_file_stem(path.name)
    place_of_id: dict[str, str] = {}

    def read(record: Record, index: int, left_out: Counter[str]) -> Question | None:
        if isinstance(record.content, Mapping) and record.content.get("answerable") is False:
            left_out["unanswerable questions"] += 1
            return None
        question = parse_question(record.content, default_id=f"{prefix}_{index}", left_out=left_out)
        question = replace(question, metadata=metadata_of(record.content))
        first = place_of_id.setdefault(question.id, record.place)
        if first != record.place:
            raise UserError(f"id {question.id!r} is already in {first}")
        return question

    return read_each(read_records(path, FIELDS) if records is None else records, path, read, counts)


def read_each(
    records: Iterable[Record],
    path: Path,
    read: Callable[[Record, int, Counter[str]], T | None],
    counts: Counter[str] | None = None,
) -> list[T]:
    """What `read` makes of each record of a file; raises a `UserError` that names the first bad records.

    `read` is given the record, its index from 0, and a count of what it leaves out. It returns None for a record that
    is left out, and raises `UserError` for a bad one. What is left out is said on stderr; with `counts` it is counted
    there instead, beside all `RECORDS`.
    """
    results: list[T] = []
    problems: list[str] = []
    left_out: Counter[str] = Counter()
    count = 0
    for count, record in enumerate(records, start=1):
        try:
            if record.fault:
                raise UserError(record.fault)
            if (result := read(record, count - 1, left_out)) is not None:
                results.append(result)
        except (UserError, RecursionError) as error:
            problems.append(f"{record.place}: {error}")
    if problems:
        raise UserError(_bad_records(path, problems, count))
    if counts is not None:
        counts.update(left_out, **{RECORDS: count})
    else:
        for what, times in left_out.items():
            print(f"note: {path}: left out {times} {what} ({count} records in all)", file=sys.stderr)
    if not results:
        raise UserError(f"{path} holds no question")
    return results


def _bad_records(path: Path, problems: list[str], count: int) -> str:
    if len(problems) == 1:
        return f"{path} {problems[0]}"
    first = f"The first {MOST_NAMED}: " if len(problems) > MOST_NAMED else ""
    return f"{path}: {len(problems)} of {count} records cannot be used. {first}{'. '.join(problems[:MOST_NAMED])}"


def parse_question(
    record: object, *, default_id: str, question_key: str | None = None, left_out: Counter[str] | None = None
) -> Question:
    """The question of one record, without its metadata; raises a `UserError` that names the field and its value.

    `question_key` is the only field where the question is looked for, if it is given. `left_out` counts the parts of
    records that are not used.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{_shown(record)} was given; expected an object with a question and its answers")
    fields = {str(name).lower(): value for name, value in record.items()}
    if _plain(fields.get("choices")):
        raise UserError("multiple-choice questions (`choices`) are not supported; expected texts as answers")
    name, value = _first(fields, (question_key.lower(),) if question_key else _QUESTION_FIELDS)
    question = question_text(value, name, left_out)
    name, value = _first(fields, _ANSWER_FIELDS)
    given = _with_aliases(_decoded(value) if name == _JSON_FIELD else value, fields.get("answer_aliases"))
    golden_answers = parse_gold_answers(given)
    if not any(answer.strip() for answer in golden_answers):
        raise UserError(f"{name}: {_shown(value if given is None else given)} was given; {EXPECTED_ANSWERS}")
    for answer in golden_answers:
        _check_characters(name, answer)
    return Question(_id_text(fields, default_id), question, golden_answers)


def parse_gold_answers(value: object) -> tuple[str, ...]:
    """Gold answers of any supported shape as distinct texts, in order; () for another type or an empty list.

    Text, number, true or false (yes or no), a mapping (Search-R1's `target`, TriviaQA's `value` with its `aliases`,
    SQuAD's `text`), a list or numpy array of any of these; in a list of lists each text counts.

    >>> parse_gold_answers([["King Wu", "Wu"], ["Wu of Zhou"]]), parse_gold_answers(False), parse_gold_answers(1969)
    (('King Wu', 'Wu', 'Wu of Zhou'), ('no',), ('1969',))
    >>> parse_gold_answers({"target": ["Paris"]}), parse_gold_answers({"value": "Sunset", "aliases": ["Sunset Blvd"]})
    (('Paris',), ('Sunset', 'Sunset Blvd'))
    """
    value = _plain(value)
    if isinstance(value, bool):
        return ("yes",) if value else ("no",)
    if (text := _text_or_number(value)) is not None:
        return (text,)
    if isinstance(value, list | tuple):
        parts = [parse_gold_answers(part) for part in value]
        # One bad part makes the whole list invalid: without that answer, right predictions would count as wrong.
        return tuple(dict.fromkeys(text for part in parts for text in part)) if all(parts) else ()
    if isinstance(value, Mapping):
        fields = {str(name).lower(): part for name, part in value.items()}
        _, answer = _first_or_none(fields, ("target", "value", "text"))
        return () if answer is None else parse_gold_answers(_with_aliases(answer, fields.get("aliases")))
    return ()


def _with_aliases(answer: object, aliases: object) -> object:
    return [answer, aliases] if _plain(aliases) else answer


def _decoded(value: object) -> object:
    """A list that stands as JSON in a text; anything else as it is, a text that is not JSON as None."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def question_text(given: object, name: str = "question", left_out: Counter[str] | None = None) -> str:
    """The question in a text or in chat messages; raises a `UserError` with the field's `name` for anything else."""
    value = _plain(given)
    if isinstance(value, list):
        value = _user_message(name, value, Counter() if left_out is None else left_out)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name}: {_shown(given)} was given; expected a text that is not blank")
    _check_characters(name, value)
    return value


def _user_message(name: str, messages: list[Any], left_out: Counter[str]) -> object:
    """The content of the only user's message; a system's is left out, because the prompt template has instructions."""
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    if roles.count("user") != 1 or any(role not in ("user", "system") for role in roles):
        raise UserError(f"{name}: {_shown(messages)} was given; expected a text, or one chat message of the user")
    left_out.update("system messages" for role in roles if role == "system")
    content = _plain(messages[roles.index("user")].get("content"))
    if isinstance(content, list):  # of parts, as in OpenAI's format, which may be other than text
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        return "".join(texts) if len(texts) == len(content) else None
    return content


def _id_text(fields: Mapping[str, Any], default: str) -> str:
    name, value = _first_or_none(fields, _ID_FIELDS)
    if value is None:
        return default
    text = _text_or_number(_plain(value))
    if text is None or not text.strip():
        raise UserError(f"{name}: {_shown(value)} was given; expected a text that is not blank, or a number")
    _check_characters(name, text)
    return text


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """The first of these fields that holds a value, with its name; raises `UserError` if the record has none."""
    name, value = _first_or_none(fields, names)
    if not name:
        lacking = f"{names[0]} is not set" if len(names) == 1 else f"none of {', '.join(names)} is set"
        raise UserError(f"{lacking}; the record has {', '.join(sorted(fields)) or 'no fields'}")
    return name, value


def _first_or_none(fields: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """As `_first`, but ("", None) if there is none; a field that is null is given only if all are."""
    null = ""
    for name in names:
        holder_name, _, inner = name.rpartition(".")
        holder = fields.get(holder_name) if holder_name else fields
        if isinstance(holder, Mapping) and inner in holder:
            if holder[inner] is not None:
                return name, holder[inner]
            null = null or name
    return null, None


def _plain(value: object) -> Any:
    """An array or scalar of numpy as Python's own type; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _text_or_number(value: object) -> str | None:
    """A text as it is, a number as people write it; None for anything else.

    >>> _text_or_number("No. 5"), _text_or_number(1969), _text_or_number(5.5), _text_or_number(True)
    ('No. 5', '1969', '5.5', None)
    """
    match value:
        case str():
            return value
        case int() if not isinstance(value, bool):
            return str(value)
        case float() | Decimal() if math.isfinite(value):
            return str(value).removesuffix(".0")  # pandas makes floats of the numbers in a column with gaps
        case _:
            return None


def _check_characters(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: {_shown(text)} was given, which holds half a character; repair the text") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"
