"""One set or a mix: what is trained on and validated on, what is left out and why, and ids that no two rows share."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from flashrag.episode import EndReason, Failure, Trajectory
from flashrag.metrics import supporting_documents, supporting_titles
from flashrag.questions import Question, read_questions, same_question_key
from flashrag.system.json_lines import append_line
from training import data_preprocess, data_preprocess_hpqa
from training.question_sets import SET, QuestionSet, with_own_ids
from verl_search.rollout.trajectories import Retention, TrajectoryWriter

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CITIES = [
    {"id": f"c{number}", "question": f"Which river crosses city {number}?", "answer": f"River {number}"}
    for number in range(8)
]
KINGS = [{"id": f"k{number}", "question": f"Who followed king {number}?", "answer": "Wu"} for number in range(4)]
DEV = [{"id": "d0", "question": "Who dug the canal?", "answer": "Yu"}]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of data sets: 8 cities and 4 kings to train on, one question to validate on."""
    folder = tmp_path / "data"
    write(folder / "cities" / "train.jsonl", CITIES)
    write(folder / "kings" / "train.jsonl", KINGS)
    write(folder / "canals" / "dev.jsonl", DEV)
    return folder


def run(data: Path, *arguments: object) -> int:
    return data_preprocess.main([*map(str, arguments), "--data_dir", str(data), "--output_dir", str(data / "out")])


def rows(data: Path, name: str = "train") -> list[dict[str, Any]]:
    return pq.read_table(data / "out" / f"{name}.parquet").to_pylist()


def by_source(found: list[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(row["data_source"] for row in found))


def questions(found: list[dict[str, Any]]) -> list[str]:
    return [row["question"] for row in found]


def test_a_mix_names_the_set_of_each_row(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write(data / "own file:2.jsonl", [{"question": "Who?", "answer": "Yi"}])
    assert run(data, "--train", "cities", "kings", "--train", f"own={own}", "--dev", "canals") == 0
    train = rows(data)
    assert by_source(train) == {"cities": 8, "kings": 4, "own": 1}
    assert [row["extra_info"]["index"] for row in train] == list(range(13)), "no two rows of a file share an index"
    assert train[12] == {
        "data_source": "own",
        "question": "Who?",
        "ability": "question_answering",
        "reward_model": {"style": "rule", "ground_truth": ["Yi"]},
        "extra_info": {"id": "train_0", "index": 12, "split": "train"},
        "prompt": [{"role": "user", "content": "Who?"}],
        "agent_name": "search_agent",
        "metadata": {"golden_doc_ids": [], "supporting_titles": []},
    }
    assert questions(rows(data, "test")) == ["Who dug the canal?"]
    printed = capsys.readouterr().out
    assert "train.parquet: 13 questions (cities 8, kings 4, own 1)\n" in printed
    assert "test.parquet: 1 of 1 dev questions (canals 1)\n" in printed


@pytest.mark.parametrize(
    ("weight", "times"),
    [
        ("0.5", {1: 4}),  # half of 8
        ("1", {1: 8}),
        ("2", {2: 8}),
        ("2.25", {2: 6, 3: 2}),  # 8 twice, a quarter of 8 once more
        ("0.001", {1: 1}),  # at least one
        ("1e0", {1: 8}),
    ],
)
def test_a_weight_is_how_often_each_question_of_a_set_counts(weight: str, times: dict[int, int], data: Path) -> None:
    def prepared(*more: str) -> list[dict[str, Any]]:
        assert run(data, "--train", f"cities:{weight}", "kings", "--dev", "canals", *more) == 0
        return rows(data)

    first = prepared()
    assert prepared() == first, "the same for the same seed"
    asked = Counter(questions([row for row in first if row["data_source"] == "cities"]))
    assert Counter(asked.values()) == times
    assert by_source(first)["kings"] == 4, "the weight of one set changes no other"
    assert len(read_questions(data / "out" / "train.parquet")) == len(first), "which refuses an id that is there twice"
    if weight == "0.5":
        assert any(questions(prepared("--seed", str(seed))) != questions(first) for seed in range(1, 4))


@pytest.mark.parametrize(
    "text",
    ["nq:0", "nq:-1", "nq:101", "nq:1e999", "nq:half", "nq:nan", "nq:", "nq,musique", "my/file.jsonl", "", "=x.json",
     "nq=", "-", "a b", "nq:1:2", "..", "nq:1.2.3"],
)  # fmt: skip
def test_a_word_that_names_no_set_is_refused(text: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, f"--train={text}", "--dev", "canals") == 2
    printed = capsys.readouterr().err
    assert f"argument --train: {text!r} was given; expected NAME, NAME/SPLIT or NAME=FILE" in printed
    assert printed.count("\n") == 1


@given(
    st.builds(
        QuestionSet,
        st.from_regex(r"\A[a-z0-9_]{1,8}\Z"),
        path=st.none() | st.from_regex(r"\A[a-z:=/. ]{1,12}\.jsonl\Z").map(Path),
        weight=st.integers(1, 400).map(lambda quarters: quarters / 4),
    )
)
def test_a_set_reads_as_it_is_written(one: QuestionSet) -> None:
    assert QuestionSet.parse(str(one)) == one


def test_a_name_stands_for_the_split_that_is_trained_on_or_evaluated(data: Path) -> None:
    for split, year in (("train", 1), ("dev", 2), ("test", 3)):
        write(data / "nq" / f"{split}.jsonl", [{"question": f"what happened in {year}", "answer": "x"}])
    assert run(data, "--train", "nq", "--dev", "nq") == 0
    assert questions(rows(data)) == ["what happened in 1"]
    assert questions(rows(data, "test")) == ["what happened in 3"], "nq is evaluated on test"
    assert run(data, "--train", "nq/test", "--dev", "nq/dev") == 0
    assert questions(rows(data) + rows(data, "test")) == ["what happened in 3", "what happened in 2"]


def test_train_and_dev_share_no_question_whatever_the_sample(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = [{"question": text, "answer": "x"} for text in ("which RIVER crosses  the city 3", "Who followed king 2?")]
    write(data / "canals" / "dev.jsonl", DEV + dev)
    assert run(data, "--train", "cities", "kings", "--dev", "canals", "--dev_sample_size", 1) == 0
    assert by_source(rows(data)) == {"cities": 7, "kings": 3}
    assert "Which river crosses city 3?" not in questions(rows(data))
    told = "note: left out 2 train questions that are dev questions, too (cities 1, kings 1) [data.left_out]\n"
    assert told in capsys.readouterr().err


def test_an_id_that_is_taken_gets_its_set_and_split_in_front(data: Path) -> None:
    write(data / "kings" / "train.jsonl", [{**KINGS[0], "id": "c1"}, {**KINGS[1], "id": "d0"}])
    assert run(data, "--train", "cities", "kings:2", "--dev", "canals") == 0
    found = rows(data, "test") + rows(data)
    assert [row["extra_info"]["id"] for row in found[:9]] == ["d0", *(f"c{n}" for n in range(8))], "dev keeps its ids"
    copies = ["kings/train/c1", "kings/train/d0", "kings/train/c1#2", "kings/train/d0#2"]
    assert [row["extra_info"]["id"] for row in found[9:]] == copies


@given(st.lists(st.lists(st.sampled_from(["a", "x/dev/a", "x/dev/a#2", "y/dev/a"])), max_size=4))
def test_no_two_questions_share_an_id(groups: list[list[str]]) -> None:
    taken: set[str] = set()
    asked = [
        with_own_ids([Question(i, "Who?", ("Wu",), {SET: QuestionSet("x")}) for i in ids], "dev", taken)
        for ids in groups
    ]
    own = [question.id for some in asked for question in some]
    assert len(set(own)) == len(own) == sum(map(len, groups))


def test_each_dev_set_has_a_sample_of_its_own(data: Path) -> None:
    for name in ("cities", "kings"):
        (data / name / "train.jsonl").rename(data / name / "dev.jsonl")
    write(data / "wells" / "train.jsonl", [{"question": f"Who dug well {n}?", "answer": "Yi"} for n in range(5)])
    dev = ("--dev", "cities", "kings", "canals", "--dev_sample_size")
    assert run(data, "--train", "wells", *dev, 3) == 0
    assert by_source(rows(data, "test")) == {"cities": 3, "kings": 3, "canals": 1}
    assert run(data, "--train", "wells", *dev, -1, "--hold_out", 2) == 0
    assert by_source(rows(data, "test")) == {"cities": 8, "kings": 4, "canals": 1, "wells": 2}


def test_held_out_questions_are_all_validated_on_and_never_trained_on(data: Path) -> None:
    def prepared(*more: object) -> tuple[list[str], list[str]]:
        assert run(data, "--train", "cities:2", "kings", "--hold_out", 3, "--dev_sample_size", 1, *more) == 0
        return questions(rows(data)), questions(rows(data, "test"))

    train, dev = prepared()
    assert by_source(rows(data, "test")) == {"cities": 3, "kings": 3}
    assert by_source(rows(data)) == {"cities": 10, "kings": 1}  # (8 - 3) twice, 4 - 3
    assert not set(train) & set(dev)
    assert {*train, *dev} == {record["question"] for record in CITIES + KINGS}
    assert prepared() == (train, dev)
    assert any(prepared("--seed", seed)[1] != dev for seed in (1, 2, 3))
    train, dev = prepared("--dev", f"cities={data / 'canals' / 'dev.jsonl'}")
    assert by_source(rows(data)) == {"cities": 16, "kings": 1}, "a set that --dev names is not divided"
    assert by_source(rows(data, "test")) == {"cities": 1, "kings": 3}


def test_the_support_of_a_question_stays_and_is_read_by_the_evaluation(data: Path) -> None:
    """In both shapes; a file in which no support is named has the same columns."""
    named = [
        {"question": "Who dug?", "answer": "Yi", "metadata": {"golden_doc_ids": [7], "supporting_titles": ["Canal"]}},
        {"question": "Who led?", "answer": "Wu", "metadata": {"supporting_facts": [["Zhou", 1]], "context": ["long"]}},
        {"question": "Who ate?", "answer": "Li"},
    ]
    own = write(data / "own.jsonl", named)
    assert run(data, "--train", "cities", "--dev", f"own={own}") == 0
    read = read_questions(data / "out" / "test.parquet")
    assert [supporting_documents(question.metadata) for question in read] == [
        ("id", {"7"}),
        ("title", {"Zhou"}),
        None,
    ]
    assert supporting_titles(read[0].metadata) == ("Canal",)
    train, dev = (pq.read_schema(data / "out" / f"{name}.parquet") for name in ("train", "test"))
    assert train == dev


def test_support_that_cannot_be_read_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write(data / "own.jsonl", [{"question": "Who?", "answer": "Yi", "metadata": {"supporting_facts": [3]}}])
    assert run(data, "--train", "cities", "--dev", f"own={own}") == 2
    assert f"{own} line 1: metadata: its supporting documents cannot be read" in capsys.readouterr().err


def test_a_question_that_a_file_has_twice_is_not_held_out_and_trained_on(data: Path) -> None:
    write(data / "cities" / "train.jsonl", CITIES + [{**record, "id": f"again{record['id']}"} for record in CITIES])
    assert run(data, "--train", "cities", "--hold_out", 4) == 0
    assert not set(questions(rows(data))) & set(questions(rows(data, "test")))


def test_questions_are_kept_by_their_words(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"question": "Who was king?", "answer": ["the Duke of Zhou", "Dan"]},  # 3 words; the shorter answer has 1
        {"question": "Who was the king?", "answer": "Wu"},  # 4
        {"question": "Who ruled?", "answer": "King Wu of Zhou"},  # 2; 4
        {"question": "Who fell?", "answer": [" ", "King Zhou of Shang"]},  # a blank answer is none
    ]
    write(data / "own.jsonl", records)
    sets = ("--train", f"own={data / 'own.jsonl'}", "kings", "--dev", "canals")
    assert run(data, *sets, "--max_question_words", 4, "--max_answer_words", 3) == 0
    assert questions(rows(data)) == ["Who was king?", "Who was the king?", *(king["question"] for king in KINGS)]
    assert run(data, *sets, "--max_question_words", 3) == 2, "no king is left"
    printed = capsys.readouterr().err
    assert "left out 2 train questions that are without a gold answer of at most 3 words (own 2)" in printed
    assert "left out 5 train questions that are longer than 3 words (own 1, kings 4)" in printed
    assert "error: no train question of kings is left: 4 are longer than 3 words; leave out fewer" in printed


def answered(number: int, right: bool, **changes: Any) -> Trajectory:
    """A trajectory of one of CITIES, as it is asked elsewhere: only the question's text is the same."""
    record = CITIES[number]
    asked = {"question_id": "other", "question": record["question"].lower(), "gold_answers": (record["answer"],)}
    return Trajectory(**{**asked, "answer": record["answer"] if right else "no", "split": "train", "step": 1} | changes)


FAILED = {"error": Failure("SearchError", "no server"), "end_reason": "failed"}
# Question 0 is always right, 1 in one of two, 2 never; 3 was not answered, 4 to 7 were not asked.
ATTEMPTS = [
    *(answered(0, True), answered(0, True), answered(1, True), answered(1, False), answered(2, False)),
    *(answered(3, False, end_reason=EndReason.SEARCH_FAILED), answered(3, False, **FAILED)),
    answered(0, False, end_reason=EndReason.ABORTED),
]


def training_run(folder: Path) -> Path:
    async def write_all() -> None:
        writer = TrajectoryWriter(folder / "trajectories", Retention())
        for trajectory in ATTEMPTS:
            await writer.write(trajectory)

    asyncio.run(write_all())
    return folder


def evaluation_run(folder: Path) -> Path:
    folder.mkdir()
    for trajectory in ATTEMPTS:
        append_line(folder / "items.jsonl", trajectory.to_json())
    return folder


@pytest.mark.parametrize("make", [training_run, evaluation_run])
@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        (("--min_pass_rate", "0.5"), [0, 1]),
        (("--max_pass_rate", "0.5"), [1, 2]),
        (("--min_pass_rate", "0.1", "--max_pass_rate", "0.9"), [1]),
    ],
)
def test_questions_are_kept_by_their_pass_rate(
    make: Callable[[Path], Path], bounds: tuple[str, ...], kept: list[int], data: Path, capsys: Any
) -> None:
    run_folder = make(data / "run")
    assert run(data, "--train", "cities", "--dev", "canals", "--pass_rate_from", run_folder, *bounds) == 0
    assert [row["extra_info"]["id"] for row in rows(data)] == [f"c{number}" for number in kept]
    printed = capsys.readouterr().err
    assert f"left out 5 train questions that are not answered in {run_folder} (cities 5)" in printed
    assert f"left out {3 - len(kept)} train questions that are right there less than" in printed


@pytest.fixture(scope="module")
def rivers(serve: Callable[[Any], str]) -> str:
    """A retrieval server whose first passage holds the answer of every even city, and whose second that of city 1."""
    app = FastAPI()

    @app.get("/health")
    @app.get("/metrics")
    def health() -> dict[str, str]:
        return {"status": "healthy"}

    app.post("/search")(lambda: [[], []])

    @app.post("/batch_search")
    def search(request: dict[str, Any]) -> list[list[Any]]:
        assert request["return_score"]
        found = []
        for query in request["query"]:
            number = int("".join(filter(str.isdigit, query)) or 1)
            texts = [f"The river {number} is old." if number % 2 == 0 else "no", "river 1", "river 10"]
            documents = [{"id": str(rank), "contents": text} for rank, text in enumerate(texts)][: request["top_n"]]
            found.append((documents, [1.0] * len(documents)))
        return [[documents for documents, _ in found], [scores for _, scores in found]]

    return serve(app)


def test_questions_are_kept_if_a_search_finds_an_answer(data: Path, rivers: str, capsys: Any) -> None:
    yes = [{"id": "y", "question": "Is it so?", "answer": True}]
    sets = ("--train", "cities", f"own={write(data / 'own.jsonl', yes)}:2", "--dev", "canals", "--search_url", rivers)
    assert run(data, *sets, "--check") == 0
    printed = capsys.readouterr().out
    assert "search  for 9 questions\n" in printed
    assert "train.parquet: 10 rows" in printed, "--check does not search"
    assert not (data / "out").exists()
    assert run(data, *sets) == 0
    even = ["c0", "c1", "c2", "c4", "c6"]
    assert [row["extra_info"]["id"] for row in rows(data)] == [*even, "y", "own/train/y"], "a yes or no cannot be found"
    told = "left out 3 train questions that are without a gold answer in the first 5 passages found (cities 3)"
    assert told in capsys.readouterr().err
    assert run(data, *sets, "--search_top_n", 1) == 0
    assert [row["extra_info"]["id"] for row in rows(data)][:5] == ["c0", "c2", "c4", "c6", "y"]


def test_a_set_of_which_a_search_leaves_nothing_is_named_and_nothing_is_written(
    data: Path, rivers: str, capsys: Any
) -> None:
    assert run(data, "--train", "cities", "kings", "--dev", "canals", "--search_url", rivers) == 2
    printed = capsys.readouterr().err
    assert "no train question of kings is left: 4 are without a gold answer in the first 5 passages found" in printed
    assert not (data / "out").exists()


def test_all_that_is_wrong_is_told_at_once(data: Path, capsys: pytest.CaptureFixture[str], closed_url: str) -> None:
    wrong = ["--train", "citie", f"own={data / 'no.jsonl'}", "cities", "--dev", "canals:2", "nq", "--hold_out", 9]
    more = ["--dev_sample_size", 0, "--min_pass_rate", 0.5, "--search_url", closed_url]
    for check in ([], ["--check"]):
        assert run(data, *wrong, *more, *check) == 2
    for printed in capsys.readouterr():
        for words in (
            "did you mean 'cities'?",
            "no.jsonl is not a file; give a .jsonl, .json or .parquet file",
            "--dev canals:2: only --train takes a weight",
            "download it: python scripts/download_data.py nq --data_dir",
            "--dev_sample_size is 0",
            "--pass_rate_from goes with --min_pass_rate",
            f"no retrieval server answers at search_url={closed_url}",
        ):
            assert words in printed
    assert not (data / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train", "cities"], "there is no question to validate on; give --dev SET, or --hold_out N"),
        (["--train", "cities", "--hold_out", "8"], "no train question of cities is left: --hold_out takes all"),
        (["--train", "cities", "--dev", "cities/train"], "8 are dev questions, too"),
        (["--train", "cities", "--dev", "cities/train", "--hold_out", "2"], "--hold_out 2 takes no question"),
        (["--train", "cities", "--hold_out", "0"], "argument --hold_out: 0 was given; expected an integer from 1 on"),
        (["--dev", "canals"], "the following arguments are required: --train"),
        (["--train", "cities", "--dev", "canals", "--pass_rate_from", "."], "--pass_rate_from goes with --min_pass"),
        (
            ["--train", "cities", "--dev", "canals", "--pass_rate_from", "nowhere", "--min_pass_rate", "0.1"],
            "--pass_rate_from nowhere holds no answered question; expected the folder of a training run",
        ),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_flags_that_do_not_fit_are_refused(
    arguments: list[str], words: str, check: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, *arguments, *check) == 2
    assert words in "".join(capsys.readouterr())
    assert not (data / "out").exists()


def test_check_says_what_would_be_written_and_writes_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ("--train", "cities:0.5", "kings", "--dev", "canals", "--hold_out", "1")
    assert run(data, *sets, "--check") == 0
    printed = capsys.readouterr().out
    assert f"train   cities: {data}/cities/train.jsonl: 8 questions of 8 records; left out: none\n" in printed
    assert f"    kings: {data}/kings/train.jsonl: 4 questions of 4 records; left out: none\n" in printed
    assert "sets       train.parquet: cities 4, kings 3; test.parquet: canals 1, cities 1, kings 1" in printed
    assert "search  none" in printed
    assert "command   python training/data_preprocess.py --train cities:0.5 kings --dev canals --hold_out 1" in printed
    assert not (data / "out").exists()


def test_the_published_command_writes_the_same_rows_for_one_set(data: Path) -> None:
    train, dev = data / "cities" / "train.jsonl", data / "canals" / "dev.jsonl"
    assert run(data, "--train", f"hotpotqa={train}", "--dev", f"hotpotqa={dev}") == 0
    paths = ["--train_data_path", str(train), "--dev_data_path", str(dev), "--output_dir", str(data / "published")]
    assert data_preprocess_hpqa.main(paths) == 0
    for name in ("train.parquet", "test.parquet"):
        assert (data / "published" / name).read_bytes() == (data / "out" / name).read_bytes()


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_the_field_s_files_can_be_mixed(tmp_path: Path) -> None:
    sets = [
        "--train",
        "musique:0.25",
        f"nq={DATA / 'retrieval' / 'nq.jsonl'}",
        "--dev",
        "musique",
        "bamboogle",
        "popqa",
    ]
    arguments = [*sets, "--hold_out", "500", "--data_dir", str(DATA / "qa"), "--output_dir", str(tmp_path / "out")]
    assert data_preprocess.main(arguments) == 0
    train, dev = rows(tmp_path), rows(tmp_path, "test")
    assert by_source(dev) == {"musique": 100, "bamboogle": 100, "popqa": 100, "nq": 500}
    assert by_source(train)["nq"] == 2155, "2,655 without 500"
    assert by_source(train)["musique"] == pytest.approx(19938 / 4, abs=20)
    assert not {same_question_key(row["question"]) for row in train} & {same_question_key(q) for q in questions(dev)}
    assert len({row["extra_info"]["id"] for row in train + dev}) == len(train) + len(dev)
