"""The preprocess script on records in each of HotpotQA's formats, and what it says about bad ones."""

import codecs
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from verl.utils.dataset.rl_dataset import RLHFDataset

from flashrag.dataset import Question
from flashrag.errors import UserError
from training import data_preprocess_hpqa, qa_rows

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "training" / "data_preprocess_hpqa.py"


def official(number: int, **changes: Any) -> dict[str, Any]:
    """A record as in hotpot_train_v1.1.json."""
    return {
        "_id": f"5a7a0693554299{number:010x}",
        "question": f"Which river crosses city {number}?",
        "answer": f"River {number}",
        "type": "bridge",
        "level": "medium",
        "supporting_facts": [[f"City {number}", 0]],
        "context": [[f"City {number}", [f"City {number} lies on River {number}.", " It is old."]]],
    } | changes


def hub(number: int, **changes: Any) -> dict[str, Any]:
    """A record as in the hub's variant: no `_id`, columns instead of pairs."""
    return {
        "question": f"Who built tower {number}?",
        "answer": f"Builder {number}",
        "type": "comparison",
        "level": "hard",
        "supporting_facts": {"title": [f"Tower {number}"], "sent_id": [0]},
        "context": {"title": [f"Tower {number}"], "sentences": [[f"Builder {number} built it."]]},
    } | changes


def without(record: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != field}


def write_json(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def run(tmp_path: Path, train: Any, dev: Any, *more: str) -> int:
    train_path = write_json(tmp_path / "train.json", train)
    dev_path = write_json(tmp_path / "dev.json", dev)
    arguments = ["--train_data_path", str(train_path), "--dev_data_path", str(dev_path)]
    return data_preprocess_hpqa.main([*arguments, "--output_dir", str(tmp_path / "out"), *more])


def read(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(tmp_path / "out" / name).to_pylist()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_official_train_and_hub_dev(tmp_path: Path) -> None:
    assert run(tmp_path, [official(0), official(1)], [hub(0)]) == 0
    assert read(tmp_path, "train.parquet")[1] == {
        "data_source": "hotpotqa",
        "question": "Which river crosses city 1?",
        "ability": "question_answering",
        "reward_model": {"style": "rule", "ground_truth": ["River 1"]},
        "extra_info": {"id": "5a7a06935542990000000001", "index": 1, "split": "train"},
        "prompt": [{"role": "user", "content": "Which river crosses city 1?"}],
        "agent_name": "search_agent",
        "metadata": {"golden_doc_ids": [], "supporting_titles": []},
    }
    (dev_row,) = read(tmp_path, "test.parquet")
    assert dev_row["extra_info"] == {"id": "dev_0", "index": 0, "split": "dev"}
    assert dev_row["reward_model"]["ground_truth"] == ["Builder 0"]


def packed(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    """A file of these records in the form and packing that its name says."""
    path = folder / name
    lines = ("\n".join(map(json.dumps, records)) + "\n\n").encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_bytes(lzma.compress(lines) if name.endswith(".xz") else codecs.BOM_UTF8 + lines)
    return path


@pytest.mark.parametrize("name", ["records.jsonl", "records.json", "records.jsonl.xz", "records.parquet"])
def test_every_form_of_a_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    records = [hub(number, id=f"h{number}") for number in range(3)]
    path = packed(tmp_path, name, records)
    arguments = ["--train_data_path", str(path), "--dev_data_path", str(path), "--output_dir", str(tmp_path / "out")]
    assert data_preprocess_hpqa.main(arguments) == 0
    rows = read(tmp_path, "train.parquet")
    assert [row["extra_info"]["id"] for row in rows] == ["h0", "h1", "h2"]
    questions = [Question(record["id"], record["question"], (record["answer"],)) for record in records]
    assert rows == qa_rows.qa_rows(questions, "train", "hotpotqa")


@pytest.mark.parametrize(
    ("record", "ground_truth"),
    [
        ({"golden_answers": ["Ada", "Ada Lovelace"], "metadata": {}}, ["Ada", "Ada Lovelace"]),
        ({"golden_answers": [["Ada"], ["Ada Lovelace"]]}, ["Ada", "Ada Lovelace"]),
        ({"golden_answers": "Ada"}, ["Ada"]),
        ({"answer": ["Ada"]}, ["Ada"]),
        ({"answer": True}, ["yes"]),
        ({"answer": 1969}, ["1969"]),
        ({"answer": "Ada", "answer_aliases": ["Ada Lovelace"], "answerable": True}, ["Ada", "Ada Lovelace"]),
        ({"reward_model": {"style": "rule", "ground_truth": {"target": ["Ada"]}}}, ["Ada"]),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_every_shape_of_answers_is_prepared(record: dict[str, Any], ground_truth: list[str], tmp_path: Path) -> None:
    assert run(tmp_path, [{"id": 5, "question": "Who?", **record}], [hub(0)]) == 0
    (row,) = read(tmp_path, "train.parquet")
    assert row["reward_model"]["ground_truth"] == ground_truth
    assert row["extra_info"]["id"] == "5"


def test_text_is_kept_verbatim(tmp_path: Path) -> None:
    question = "  Où est “Saïgon”?\n\u200f\x00 "
    assert run(tmp_path, [official(0, question=question, answer=" 1,000 ")], [hub(0)]) == 0
    (row,) = read(tmp_path, "train.parquet")
    assert row["question"] == question
    assert row["reward_model"]["ground_truth"] == [" 1,000 "]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (official(7, answer=""), "record 3: answer: '' was given"),
        (official(7, answer=None), "record 3: answer: None was given"),
        (official(7, answer=[" "]), "record 3: answer: [' '] was given"),
        (official(7, question=" "), "record 3: question: ' ' was given"),
        (official(7, _id=True), "record 3: _id: True was given"),
        (official(7, question="half \ud800"), "record 3: question: 'half \\ud800' was given"),
        (without(official(7), "answer"), "record 3: none of"),
        (without(official(7), "question"), "record 3: none of question"),
        (without(official(7), "answer") | {"golden_answers": []}, "record 3: golden_answers: [] was given"),
        ("text", "record 3: 'text' was given; expected an object"),
        (official(1), "record 3: id '5a7a06935542990000000001' is already in record 2"),
    ],
)
def test_bad_records_are_named_and_nothing_is_written(
    bad: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, [official(0), official(1), bad, official(9, answer="")], [hub(0)]) == 2
    printed = capsys.readouterr().err
    assert f"train.json: 2 of 4 records cannot be used. {message}" in printed
    assert "record 4: answer: '' was given" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_dev_file_leaves_earlier_output_alone(tmp_path: Path) -> None:
    assert run(tmp_path, [official(0)], [hub(0)]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(tmp_path, [official(5)], [hub(0, answer="")]) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_sample_is_seeded_and_in_file_order(tmp_path: Path) -> None:
    dev = [hub(number) for number in range(250)]

    def sampled(*more: str) -> list[int]:
        assert run(tmp_path, [official(0)], dev, *more) == 0
        return [row["extra_info"]["index"] for row in read(tmp_path, "test.parquet")]

    first = sampled()
    assert len(first) == 100
    assert first == sorted(set(first))
    assert sampled() == first
    assert sampled("--seed", "1") != first
    assert len(sampled("--dev_sample_size", "7")) == 7
    assert sampled("--dev_sample_size", "-1") == list(range(250))
    assert sampled("--dev_sample_size", "999") == list(range(250))


def test_check_says_what_would_be_written_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "où est 東京"
    folder.mkdir()
    train = [official(0), official(1, question=official(0)["question"]), official(2, answerable=False)]
    assert run(folder, train, [hub(number) for number in range(3)], "--dev_sample_size", "2", "--check") == 0
    captured = capsys.readouterr()
    lines = {line[2:].partition("  ")[0]: line for line in captured.out.splitlines()}
    assert "train.json: 2 questions of 3 records; left out: 1 unanswerable questions" in lines["train"]
    assert "dev.json: 3 questions of 3 records; left out: none" in lines["dev"]
    assert f"{folder}/out/train.parquet: 2 rows, {folder}/out/test.parquet: 2 rows" in lines["files"]
    assert "data_source, question, ability, reward_model, extra_info, prompt, agent_name" in lines["columns"]
    assert '"question": "Which river crosses city 0?"' in lines["first row"]
    assert lines["command"].endswith(f" --output_dir '{folder}/out' --dev_sample_size 2")
    assert "have the text of an earlier one; each counts in every mean" in captured.out
    assert "0 errors: this would start" in captured.out
    assert captured.err == ""
    assert not (folder / "out").exists()
    assert run(folder, [official(0, answer="")], "no list", "--dev_sample_size", "0", "--check") == 2
    printed = capsys.readouterr().out
    assert "files      unknown" in printed
    for rule in ("data.sample", "data.train", "data.dev"):
        assert f"[{rule}]" in printed
    assert "3 errors: this would not start" in printed
    assert run(folder, [official(0)], [hub(0)]) == 0, "such a folder is no hindrance"


def test_questions_in_both_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [official(0), official(1)], [official(1), official(2)]) == 0
    assert "warning: 1 of the 2 dev questions are training questions too" in capsys.readouterr().err


def test_missing_files_are_refused_by_the_command_together(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--train_data_path", "nowhere.json", "--dev_data_path", "x.json"]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    remedy = "is not a file; give a .jsonl, .json or .parquet file (JSON also as .gz, .xz or .zst)"
    assert done.stderr == (
        "error: 2 things keep this from starting:\n"
        f"  1. nowhere.json {remedy} [data.train]\n  2. x.json {remedy} [data.dev]\n"
    )


@pytest.mark.parametrize("more", [["--dev_sample_size", "0"], ["--dev_sample_size", "-2"], ["--unknown", "1"]])
def test_bad_flag_ends_with_code_2(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [official(0)], [hub(0)], *more) == 2
    assert more[0] in capsys.readouterr().err


def test_output_dir_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert run(tmp_path, [official(0)], [hub(0)]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (row,) = qa_rows.qa_rows([Question("a", "Who?", ("Ada",))], "train", "demo")
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        qa_rows.write_parquet_files({tmp_path / "first.parquet": [row], blocked / "second.parquet": [row]})
    assert names_in(tmp_path) == ["file"]
    with pytest.raises(UserError, match="no rows to write to"):
        qa_rows.write_parquet_files({tmp_path / "first.parquet": [row], tmp_path / "empty.parquet": []})
    assert names_in(tmp_path) == ["file"]
    qa_rows.write_parquet_files({tmp_path / "first.parquet": [row], tmp_path / "second.parquet": [row]})
    assert names_in(tmp_path) == ["file", "first.parquet", "second.parquet"]
    assert pq.read_table(tmp_path / "second.parquet").to_pylist() == [row]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Whitespace words, and a chat template that adds one word a message."""
    words = Tokenizer(WordLevel({"[UNK]": 0, "user": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% endfor %}"
    return tokenizer


def test_verl_reads_the_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    long = official(2, question="why " * 40)
    assert run(tmp_path, [official(0), official(1), long], [hub(0)]) == 0
    # "user Which river crosses city 0 ?" is 7 words; the long one is 41.
    settings = {"max_prompt_length": 20, "filter_overlong_prompts_workers": 1, "cache_dir": str(tmp_path / "cache")}
    dataset = RLHFDataset(str(tmp_path / "out" / "train.parquet"), tokenizer, OmegaConf.create(settings))
    assert len(dataset) == 2
    item = dataset[1]
    assert item["raw_prompt"] == [{"role": "user", "content": "Which river crosses city 1?"}]
    assert item["index"] == 1
    assert item["agent_name"] == "search_agent"
    assert item["reward_model"]["ground_truth"] == ["River 1"]
