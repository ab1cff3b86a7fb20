"""The one reader of questions: every shape that the field's files have, and every record that is refused."""

import codecs
import json
import math
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.errors import UserError
from flashrag.questions import (
    Question,
    parse_gold_answers,
    parse_question,
    question_text,
    read_questions,
    same_question_key,
)

LINE = {"id": "dev_0", "question": "Who?", "golden_answers": ["King Wu", "Wu"], "metadata": {"hops": 2}}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in LINE.items() if name != field}


def write(folder: Path, records: list[Any], name: str = "dev.jsonl") -> Path:
    path = folder / name
    lines = [record if isinstance(record, str) else json.dumps(record) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_line_is_kept_as_it_is(tmp_path: Path):
    path = write(tmp_path, [LINE, "\n", {**LINE, "id": 7, "question": " ¿Quién? ", "metadata": None}])
    questions = [
        Question("dev_0", "Who?", ("King Wu", "Wu"), {"hops": 2}),
        Question("7", " ¿Quién? ", ("King Wu", "Wu"), {}),
    ]
    assert read_questions(path) == questions
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_questions(path) == questions


ANSWERS = [
    ("King Wu", ("King Wu",)),
    (" 1,000 ", (" 1,000 ",)),
    (["King Wu", "Wu", "King Wu"], ("King Wu", "Wu")),
    ([["King Wu", "Wu"], ["Zhou Wuwang"]], ("King Wu", "Wu", "Zhou Wuwang")),
    (["Wu", ["King Wu"]], ("Wu", "King Wu")),
    (True, ("yes",)),
    (False, ("no",)),
    ([True], ("yes",)),
    (1969, ("1969",)),
    (1969.0, ("1969",)),  # pandas' integer in a column with gaps
    (5.5, ("5.5",)),
    (0, ("0",)),
    (["about 5", 5], ("about 5", "5")),
    (Decimal("2.50"), ("2.50",)),
    (10**400, ("1" + "0" * 400,)),
    (("Wu",), ("Wu",)),
    ({"target": ["Paris", "Paname"]}, ("Paris", "Paname")),  # Search-R1
    ({"target": "Paris"}, ("Paris",)),
    ({"target": np.array(["Paris"], dtype=object)}, ("Paris",)),  # as pandas reads it
    ({"value": "Sunset", "aliases": ["Sunset Blvd"], "normalized_aliases": ["x"]}, ("Sunset", "Sunset Blvd")),
    ({"Value": "Sunset", "Aliases": [], "Type": "WikipediaEntity"}, ("Sunset",)),  # TriviaQA's original
    ({"text": ["Denver"], "answer_start": [177]}, ("Denver",)),  # SQuAD
    (np.array(["a", "b"]), ("a", "b")),
    (np.array([["a", "b"], ["c", "d"]]), ("a", "b", "c", "d")),
    (np.array([np.array(["a"]), np.array(["b", "c"])], dtype=object), ("a", "b", "c")),
    (np.int64(1969), ("1969",)),
    (np.bool_(True), ("yes",)),
    (np.str_("Wu"), ("Wu",)),
    (["", "Wu"], ("", "Wu")),  # an alias that nothing matches is the file's, not ours to drop
    # Not gold answers:
    (None, ()),
    ([], ()),
    ({}, ()),
    ([["a"], []], ()),
    (["a", None], ()),
    ({"a": 1}, ()),
    ({"target": []}, ()),
    ({"target": None}, ()),
    (math.nan, ()),
    ([math.inf], ()),
    (b"Wu", ()),
    ({"Wu"}, ()),
]


@pytest.mark.parametrize(("given", "read"), ANSWERS, ids=lambda value: repr(value)[:40])
def test_gold_answers_have_many_shapes(given: Any, read: tuple[str, ...]):
    answers = parse_gold_answers(given)
    assert answers == read
    assert all(type(answer) is str for answer in answers)


SHAPES = st.recursive(
    st.text() | st.booleans() | st.integers() | st.floats() | st.none() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["target", "value", "aliases", "other"]), inner),
)


@given(SHAPES)
def test_whatever_is_given_the_answers_are_distinct_texts_and_read_the_same_again(value: Any):
    answers = parse_gold_answers(value)
    assert all(type(answer) is str for answer in answers)
    assert len(set(answers)) == len(answers)
    assert parse_gold_answers(list(answers)) == answers
    if answers:  # Search-R1's wrapping and another level of lists change nothing
        assert parse_gold_answers({"target": value}) == parse_gold_answers([value]) == answers


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_a_numpy_array_is_as_good_as_a_list(answers: list[str]):
    assert parse_gold_answers(np.array(answers, dtype=object)) == parse_gold_answers(answers)


@given(st.dictionaries(st.sampled_from([*LINE, "answer", "prompt", "choices", "reward_model", "_id"]), SHAPES))
def test_any_record_is_a_question_or_a_user_error(record: dict[str, Any]):
    try:
        question = parse_question(record, default_id="0")
    except UserError:
        return
    assert question.id.strip()
    assert question.question.strip()
    assert any(answer.strip() for answer in question.golden_answers)
    "".join((question.id, question.question, *question.golden_answers)).encode()


CHAT = [{"role": "user", "content": "Who?"}]
ROW = {  # as Search-R1's and verl's scripts write it
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer the given question. Question: who?"}],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Wu"]}},
    "extra_info": {"index": 3, "split": "train"},
}


@pytest.mark.parametrize(
    ("record", "question"),
    [
        # HotpotQA, 2WikiMultihopQA; the hub's variant of HotpotQA
        ({"_id": "5a", "question": "Who?", "answer": "yes", "context": [], "level": "hard"}, ("5a", "Who?", "yes")),
        ({"id": "5a", "question": "Who?", "answer": "Wu", "supporting_facts": {"title": []}}, ("5a", "Who?", "Wu")),
        (  # MuSiQue
            {"id": "2hop__1_2", "question": "Who?", "answer": "G. Stanley Hall", "answer_aliases": ["Stanley Hall"]},
            ("2hop__1_2", "Who?", "G. Stanley Hall", "Stanley Hall"),
        ),
        ({"question": "Who?", "answer": "Wu", "answer_aliases": []}, ("x", "Who?", "Wu")),
        ({"question": "Who?", "answer": "Wu", "answer_aliases": None}, ("x", "Who?", "Wu")),
        ({"question": "Who?", "answer": "Wu", "answer_aliases": "King Wu"}, ("x", "Who?", "Wu", "King Wu")),
        ({"qid": "e0", "term": "Albany", "question": "Will it?", "answer": False}, ("e0", "Will it?", "no")),
        (
            {"Question": "Who?", "id": "bamboogle_1", "answer": ["james madison"]},
            ("bamboogle_1", "Who?", "james madison"),
        ),
        ({"question": "who", "answer": ["Bobby Scott", "Bob Russell"]}, ("x", "who", "Bobby Scott", "Bob Russell")),
        (  # TriviaQA, and the hub's variant of it
            {"QuestionId": "tc_1", "Question": "Who?", "Answer": {"Value": "Wu", "Aliases": ["King Wu"]}},
            ("tc_1", "Who?", "Wu", "King Wu"),
        ),
        (
            {"question_id": "tc_1", "question": "Who?", "answer": {"aliases": ["King Wu"], "value": "Wu"}},
            ("tc_1", "Who?", "Wu", "King Wu"),
        ),
        (
            {"id": "5", "question": "Where?", "answers": {"text": ["Denver"], "answer_start": [1]}},
            ("5", "Where?", "Denver"),
        ),
        (
            {"id": 42, "question": "Who?", "possible_answers": '["Wu", "King Wu"]'},
            ("42", "Who?", "Wu", "King Wu"),
        ),  # PopQA
        ({"id": 42, "question": "Who?", "possible_answers": ["Wu"]}, ("42", "Who?", "Wu")),
        ({"question": "Who?", "answers": ["Wu"]}, ("x", "Who?", "Wu")),
        ({"question": "Who?", "gold_answers": "Wu"}, ("x", "Who?", "Wu")),
        ({"question": "Who?", "golden_answers": None, "answer": "Wu"}, ("x", "Who?", "Wu")),
        ({"question": "Who?", "golden_answers": ["Wu"], "answer": "one of them"}, ("x", "Who?", "Wu")),
        # Training rows: Search-R1's, with FlashRAG's columns beside its own; verl's script; verl's documentation
        ({**ROW, "id": "train_0", "question": "who", "golden_answers": ["Wu"]}, ("train_0", "who", "Wu")),
        ({**ROW, "extra_info": {"index": 3, "question": "who"}}, ("x", "who", "Wu")),
        ({**ROW, "prompt": CHAT, "reward_model": {"style": "rule", "ground_truth": "Wu"}}, ("x", "Who?", "Wu")),
        ({**ROW, "prompt": CHAT, "extra_info": None}, ("x", "Who?", "Wu")),
        ({**ROW, "prompt": CHAT, "extra_info": {"id": 5}}, ("5", "Who?", "Wu")),
        ({**LINE, "id": 0}, ("0", "Who?", "King Wu", "Wu")),
        ({**LINE, "id": 7.0}, ("7", "Who?", "King Wu", "Wu")),
        ({**LINE, "id": None}, ("x", "Who?", "King Wu", "Wu")),
        ({**LINE, "choices": []}, ("dev_0", "Who?", "King Wu", "Wu")),
        ({**LINE, "choices": None}, ("dev_0", "Who?", "King Wu", "Wu")),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_record_of_each_publisher(record: dict[str, Any], question: tuple[str, ...]):
    id_, text, *answers = question
    assert parse_question(record, default_id="x") == Question(id_, text, tuple(answers))


def test_a_row_of_a_data_frame_is_read_as_its_list_is():
    frame = pd.DataFrame({"question": ["Who?"], "golden_answers": [["Wu", "King Wu"]], "id": [5]})
    row = frame.map(lambda value: np.array(value, dtype=object) if isinstance(value, list) else value).iloc[0].to_dict()
    assert parse_question(row, default_id="x") == Question("5", "Who?", ("Wu", "King Wu"))


@pytest.mark.parametrize(
    "given",
    [
        "Who?",
        CHAT,
        np.array(CHAT, dtype=object),
        [{"role": "system", "content": "You are a helpful and harmless assistant."}, *CHAT],
        [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]}],
    ],
)
def test_a_question_is_a_text_or_chat_messages(given: Any):
    assert question_text(given) == "Who?"


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        " \n",
        3,
        True,
        {"role": "user", "content": "Who?"},
        [],
        ["Who?"],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": " "}],
        [{"role": ["user"], "content": "Who?"}],
        [{"role": "system", "content": "Who?"}],
        [*CHAT, {"role": "assistant", "content": "Wu."}, *CHAT],
        [*CHAT, {"role": "assistant", "content": "Wu."}],
        [{"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "Who?"}]}],
        "half a \ud800",
    ],
)
def test_anything_else_is_not_a_question(given: Any):
    with pytest.raises(UserError, match=r"^prompt: .* was given[;,] (expected a text|which holds half a character)"):
        question_text(given, "prompt")


def test_a_system_message_is_counted():
    left_out: Counter[str] = Counter()
    question_text([{"role": "system", "content": "Think."}, *CHAT], "prompt", left_out)
    question_text(CHAT, "prompt", left_out)
    assert left_out == {"system messages": 1}


def test_training_reads_the_question_from_the_column_that_the_config_names():
    row = {**ROW, "question": "who", "prompt": CHAT}
    assert parse_question(row, default_id="x", question_key="prompt").question == "Who?"
    with pytest.raises(UserError, match=r"^query is not set; the record has .*prompt"):
        parse_question(row, default_id="x", question_key="query")


BAD = [
    ("{not json\n", r"is not valid JSON \("),
    ('["a list"]\n', r"\['a list'\] was given; expected an object with a question and its answers"),
    ("null\n", "None was given; expected an object"),
    ({**LINE, "id": ""}, "id: '' was given; expected a text that is not blank, or a number"),
    ({**LINE, "id": True}, "id: True was given"),
    ({**LINE, "id": ["a"]}, r"id: \['a'\] was given"),
    ({**LINE, "question": " "}, "question: ' ' was given; expected a text that is not blank"),
    ({**LINE, "question": None}, "question: None was given; expected a text that is not blank"),
    ({**LINE, "question": 3}, "question: 3 was given"),
    (without("question"), "none of question, extra_info.question, prompt is set; the record has golden_answers, id"),
    (without("golden_answers"), "none of .*golden_answers, gold_answers, answers, answer, possible_answers is set"),
    ({**LINE, "golden_answers": None}, "golden_answers: None was given; expected a text that is not blank, a number"),
    ({**LINE, "golden_answers": {"a": 1}}, "golden_answers: {'a': 1} was given"),
    ({**LINE, "golden_answers": [["a"], []]}, r"golden_answers: \[\['a'\], \[\]\] was given"),
    ({**LINE, "golden_answers": []}, r"golden_answers: \[\] was given"),
    ({**LINE, "golden_answers": ""}, "golden_answers: '' was given"),
    ({**LINE, "golden_answers": ["", " "]}, r"golden_answers: \['', ' '\] was given"),
    ({**LINE, "golden_answers": ["a", None]}, r"golden_answers: \['a', None\] was given"),
    ({**LINE, "golden_answers": "half \ud800"}, r"golden_answers: 'half \\ud800' was given, which holds half a char"),
    ({**without("golden_answers"), "answer": "a", "answer_aliases": [{}]}, r"answer: \['a', \[{}\]\] was given"),
    ({**without("golden_answers"), "possible_answers": "Wu"}, "possible_answers: 'Wu' was given; expected a text"),
    ({**LINE, "golden_answers": [0], "choices": ["a", "b"]}, "multiple-choice questions .* are not supported"),
    ({**LINE, "id": 1, "metadata": [1]}, r"metadata: \[1\] was given; expected an object"),
    (f'{{"question": "Who?", "answer": {"[" * 800}1{"]" * 800}}}\n', "maximum recursion depth exceeded"),
    (LINE, "id 'dev_0' is already in line 1"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=lambda value: repr(value)[:50])
def test_a_bad_record_is_named_by_its_line(tmp_path: Path, bad: Any, reason: str):
    with pytest.raises(UserError, match=rf"dev\.jsonl line 3: {reason}"):
        read_questions(write(tmp_path, [LINE, "\n", bad]))


def test_the_first_five_bad_records_are_named(tmp_path: Path):
    bad = {**LINE, "question": "long " * 100 + "\ud800"}
    with pytest.raises(UserError) as caught:
        read_questions(write(tmp_path, [LINE, {**LINE, "question": None}, "oops\n", {**LINE, "id": "b"}]))
    assert str(caught.value) == (
        f"{tmp_path / 'dev.jsonl'}: 2 of 4 records cannot be used. line 2: question: None was given; expected a text "
        "that is not blank. line 3: is not valid JSON (Expecting value: line 1 column 1 (char 0))"
    )
    with pytest.raises(UserError, match=r"7 of 7 records cannot be used\. The first 5: line 1: .* line 5: ") as caught:
        read_questions(write(tmp_path, [bad] * 7))
    assert "line 6" not in str(caught.value)
    assert len(str(caught.value)) < 1200  # long values are cut
    assert "\n" not in str(caught.value)


def test_what_is_left_out_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    musique = {"question": "Who?", "answer": "Wu", "answer_aliases": [], "answerable": True}
    twin = {**musique, "answerable": False}
    chat = {"prompt": [{"role": "system", "content": "Think."}, *CHAT], "answer": "Wu"}
    path = write(tmp_path, [twin, {**musique, "id": "2hop__1"}, twin, chat], "musique.jsonl")
    assert [question.id for question in read_questions(path)] == ["2hop__1", "musique_3"]
    printed = capsys.readouterr().err
    assert printed == (
        f"note: {path}: left out 2 unanswerable questions (4 records in all)\n"
        f"note: {path}: left out 1 system messages (4 records in all)\n"
    )
    with pytest.raises(UserError, match="holds no question"):
        read_questions(write(tmp_path, [twin]))
    assert read_questions(write(tmp_path, [LINE]))
    assert "left out 1 unanswerable" in capsys.readouterr().err


def test_a_record_without_an_id_is_numbered(tmp_path: Path):
    path = write(tmp_path, [{"question": "Who?", "answer": "Wu"}] * 2, "NQ-open.dev.jsonl")
    assert [question.id for question in read_questions(path)] == ["NQ-open.dev_0", "NQ-open.dev_1"]
    assert [question.id for question in read_questions(path, "train")] == ["train_0", "train_1"]


def test_a_file_without_questions_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no question"):
        read_questions(write(tmp_path, ["\n"]))


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = {  # questions in each file
    "original/NQ-open.dev.jsonl.xz": 3610,
    "original/bamboogle.json.xz": 125,
    "original/hotpot_dev_distractor_v1.sample.json.xz": 100,
    "original/hotpot_train_v1.1.sample100.json.xz": 100,
    "original/musique_train.sample100.json.xz": 100,
    "original/strategyqa_dev.json.xz": 229,
    "qa/2wikimultihopqa/dev.jsonl.xz": 12576,
    "qa/bamboogle/test.jsonl.xz": 125,
    "qa/hotpotqa/dev.jsonl.xz": 7405,
    "qa/hotpotqa_2wiki_mix/train.jsonl.xz": 8148,
    "qa/musique/dev.jsonl.xz": 2417,
    "qa/musique/train.jsonl.xz": 19938,
    "qa/nq/test.jsonl.xz": 3610,
    "qa/popqa/test.jsonl.xz": 1000,
    "qa/strategyqa/dev.jsonl.xz": 229,
    "qa/triviaqa/test.jsonl.xz": 1000,
    "retrieval/2wikimultihopqa.jsonl": 500,
    "retrieval/hotpotqa.jsonl": 100,
    "retrieval/musique_dev.jsonl": 292,
    "retrieval/musique_train.jsonl": 100,
    "retrieval/nq.jsonl": 2655,
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_files(name: str):
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not at hand")
    questions = read_questions(SHARED / name)
    assert len(questions) == REAL[name]
    assert all(answer.strip() for question in questions for answer in question.golden_answers)


def test_the_same_questions_have_the_same_answers_in_both_formats_of_the_real_files():
    original, flashrag = SHARED / "original/musique_train.sample100.json.xz", SHARED / "retrieval/musique_train.jsonl"
    if not original.exists() or not flashrag.exists():
        pytest.skip(f"{original} is not at hand")
    answers = [{q.id: q.golden_answers for q in read_questions(path)} for path in (original, flashrag)]
    assert answers[0] == answers[1]
    assert sum(len(found) > 1 for found in answers[0].values()) > 10  # aliases


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Who led the  Zhou?", "who led Zhou", True),
        ("Who led the Zhou?", "Who led the Shang?", False),
        ("Où est Saïgon ?", "où est saïgon", True),
        ("?", "!", False),  # nothing but punctuation
        ("?", " ? ", True),
    ],
)
def test_texts_that_ask_the_same_question(one: str, other: str, same: bool):
    assert (same_question_key(one) == same_question_key(other)) is same
