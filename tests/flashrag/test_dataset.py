"""Reading question sets: FlashRAG's lines, and every line that is refused."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from flashrag.config import Config
from flashrag.dataset import DATASETS, DatasetSettings, Question, load_questions, read_questions
from flashrag.errors import UserError
from flashrag.utils import get_dataset

LINE = {"id": "dev_0", "question": "Who?", "golden_answers": ["King Wu", "Wu"], "metadata": {"hops": 2}}


def write(folder: Path, lines: list[Any], split: str = "dev") -> Path:
    path = folder / "zhou" / f"{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_a_line_is_kept_as_it_is(tmp_path: Path):
    path = write(tmp_path, [LINE, "\n", {**LINE, "id": 7, "question": " ¿Quién? ", "metadata": None}])
    assert read_questions(path) == [
        Question("dev_0", "Who?", ("King Wu", "Wu"), {"hops": 2}),
        Question("7", " ¿Quién? ", ("King Wu", "Wu"), {}),
    ]
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert len(read_questions(path)) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{not json\n", "Invalid JSON"),
        ('["a list"]\n', "Input should be an object"),
        ({**LINE, "id": None}, "id: None was given"),
        ({**LINE, "id": ""}, "id: '' was given"),
        ({**LINE, "id": True}, "id: True was given"),
        ({**LINE, "question": " "}, "question: ' ' was given; expected a text that is not blank"),
        ({**LINE, "question": 3}, "question: 3 was given"),
        ({key: value for key, value in LINE.items() if key != "golden_answers"}, "golden_answers is not set"),
        ({**LINE, "golden_answers": 1999}, "golden_answers: 1999 was given; expected a list of at least one string"),
        ({**LINE, "golden_answers": {"a": 1}}, "golden_answers: {'a': 1}"),
        ({**LINE, "golden_answers": [["a"], []]}, r"golden_answers: \[\['a'\], \[\]\]"),
        ({**LINE, "golden_answers": [0], "choices": ["a", "b"]}, "multiple-choice questions .* are not supported"),
        ({**LINE, "golden_answers": []}, r"golden_answers: \[\]"),
        ({**LINE, "golden_answers": ["a", 1]}, r"golden_answers: \['a', 1\]"),
        ({**LINE, "metadata": [1]}, r"metadata: \[1\]"),
        (LINE, "id 'dev_0' is already in line 1"),
    ],
)
def test_the_first_bad_line_is_named(tmp_path: Path, bad: Any, reason: str):
    path = write(tmp_path, [LINE, "\n", bad])
    with pytest.raises(UserError, match=rf"dev\.jsonl line 3:? .*{reason}|dev\.jsonl line 3 {reason}"):
        read_questions(path)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("King Wu", ("King Wu",)),
        (["King Wu", "Wu", "King Wu"], ("King Wu", "Wu")),
        ([["King Wu", "Wu"], ["Zhou Wuwang"]], ("King Wu", "Wu", "Zhou Wuwang")),
        (["Wu", ["King Wu"]], ("Wu", "King Wu")),
        (True, ("yes",)),
        (False, ("no",)),
        ([True], ("yes",)),
        ("", ("",)),  # an answer that nothing matches is the file's, not ours to drop
    ],
)
def test_golden_answers_have_several_shapes(tmp_path: Path, given: Any, read: tuple[str, ...]):
    (question,) = read_questions(write(tmp_path, [{**LINE, "golden_answers": given}]))
    assert question.golden_answers == read


def test_any_jsonl_file_is_taken_by_its_path(tmp_path: Path):
    path = write(tmp_path, [LINE])
    settings = DatasetSettings(data_dir="/nowhere", dataset_name=str(path))
    assert [question.id for question in load_questions(settings, None)] == ["dev_0"]
    with pytest.raises(UserError, match=r"dataset_name=/nowhere/x\.jsonl does not exist"):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="/nowhere/x.jsonl"), None)


def test_a_published_data_set_that_is_missing_is_refused_with_the_download_command(tmp_path: Path):
    command = rf"python scripts/download_data.py hotpotqa --data_dir {tmp_path}"
    with pytest.raises(UserError, match=command):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="hotpotqa"), "dev")
    (tmp_path / "hotpotqa").mkdir()
    with pytest.raises(UserError, match=command):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="hotpotqa"), "dev")
    with pytest.raises(UserError, match=r"holds the splits: -$"):  # hotpotqa has no test split to fetch
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="hotpotqa"), "test")


def test_every_registered_data_set_is_evaluated_on_a_split_that_it_has():
    assert all(spec.evaluated_split in spec.rows for spec in DATASETS.values())


def test_a_file_without_text_or_questions_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no question"):
        read_questions(write(tmp_path, ["\n"]))
    path = write(tmp_path, [])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="line 1: Invalid JSON"):
        read_questions(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path)


def test_a_missing_data_set_is_refused_with_the_ones_that_exist(tmp_path: Path):
    write(tmp_path, [LINE])
    write(tmp_path, [LINE], "train")
    with pytest.raises(UserError, match=r"data_dir=.*nowhere is not a folder"):
        load_questions(DatasetSettings(data_dir=str(tmp_path / "nowhere"), dataset_name="zhou"), "dev")
    with pytest.raises(UserError, match=r"dataset_name=shang: .* data_dir holds: zhou"):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="shang"), "dev")
    with pytest.raises(UserError, match=r"split=test: .* holds the splits: dev, train"):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="zhou"), "test")


def ids(tmp_path: Path, **settings: Any) -> list[str]:
    loaded = load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="zhou", **settings), "dev")
    return [question.id for question in loaded]


def test_sampling_is_first_or_seeded(tmp_path: Path):
    write(tmp_path, [{**LINE, "id": number} for number in range(100)])
    assert ids(tmp_path) == [str(number) for number in range(100)]
    assert ids(tmp_path, test_sample_num=3) == ["0", "1", "2"]
    assert ids(tmp_path, test_sample_num=1000) == ids(tmp_path)
    drawn = ids(tmp_path, test_sample_num=10, random_sample=True, seed=1)
    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn, key=int)
    assert drawn == ids(tmp_path, test_sample_num=10, random_sample=True, seed=1)
    assert drawn != ids(tmp_path, test_sample_num=10, random_sample=True, seed=2)


def test_flashrags_factory_gives_every_split(tmp_path: Path):
    write(tmp_path, [LINE])
    write(tmp_path, [{**LINE, "id": "t"}], "train")
    keys = {"data_dir": str(tmp_path), "dataset_name": "zhou"}
    both = get_dataset(Config(config_dict={**keys, "split": ["dev", "train"]}))
    assert {split: [question.id for question in questions] for split, questions in both.items()} == {
        "dev": ["dev_0"],
        "train": ["t"],
    }
    assert list(get_dataset(Config(config_dict={**keys, "split": "dev"}))) == ["dev"]
    with pytest.raises(UserError, match="split=None"):
        get_dataset(Config(config_dict=keys))
