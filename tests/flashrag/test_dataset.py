"""Finding question sets in FlashRAG's layout, and sampling them."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from flashrag.config import Config
from flashrag.dataset import DATASETS, DatasetSettings, load_questions
from flashrag.errors import UserError
from flashrag.utils import get_dataset

LINE = {"id": "dev_0", "question": "Who?", "golden_answers": ["King Wu", "Wu"], "metadata": {"hops": 2}}


def write(folder: Path, lines: list[Any], split: str = "dev") -> Path:
    path = folder / "zhou" / f"{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize("name", ["dev.jsonl", "dev.json", "dev.jsonl.gz"])
def test_any_file_is_taken_by_its_path(tmp_path: Path, name: str):
    content = json.dumps([LINE] if name == "dev.json" else LINE).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    settings = DatasetSettings(data_dir="/nowhere", dataset_name=str(tmp_path / name))
    assert [question.id for question in load_questions(settings, None)] == ["dev_0"]


def test_a_file_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"dataset_name=/nowhere/x\.jsonl does not exist; give the path of a \.jsonl"):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="/nowhere/x.jsonl"), None)


def test_a_split_may_have_any_ending(tmp_path: Path):
    write(tmp_path, [LINE])
    with lzma.open(tmp_path / "zhou" / "test.jsonl.xz", "wb") as file:
        file.write((tmp_path / "zhou" / "dev.jsonl").read_bytes())
    (tmp_path / "zhou" / "README.md").write_text("no split")
    settings = DatasetSettings(data_dir=str(tmp_path), dataset_name="zhou")
    assert load_questions(settings, "test") == load_questions(settings, "dev")
    with pytest.raises(UserError, match=r"split=train: .*train\.jsonl does not exist; .* holds the splits: dev, test$"):
        load_questions(settings, "train")


def test_a_published_data_set_that_is_missing_is_refused_with_the_download_command(tmp_path: Path):
    command = rf"python scripts/download_data.py hotpotqa --data_dir {tmp_path}"
    with pytest.raises(UserError, match=command):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="hotpotqa"), "dev")
    (tmp_path / "hotpotqa").mkdir()
    with pytest.raises(UserError, match=command):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="hotpotqa"), "dev")
    with pytest.raises(
        UserError, match=rf"python scripts/download_data.py hotpotqa --split train --data_dir {tmp_path}$"
    ):
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="hotpotqa"), "train")
    with pytest.raises(UserError, match=r"holds the splits: -$"):  # hotpotqa has no test split to fetch
        load_questions(DatasetSettings(data_dir=str(tmp_path), dataset_name="hotpotqa"), "test")


def test_every_registered_data_set_is_evaluated_on_a_split_that_it_has():
    assert all(spec.evaluated_split in spec.rows for spec in DATASETS.values())


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
