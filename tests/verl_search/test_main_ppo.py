"""Before training starts every row is read, the bad ones are named, and the environment of its processes is set."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb

from flashrag.errors import UserError
from flashrag.questions import parse_gold_answers, read_questions
from tests.proxies import clear_proxies
from tests.verl_search.composing import composed
from training import data_preprocess_hpqa
from training.qa_rows import write_parquet_files
from verl_search.main_ppo import set_environment
from verl_search.preflight.facts import TrainingFacts
from verl_search.preflight.facts import read_questions as check_questions
from verl_search.preflight.rules import ray_is_there, wandb_is_there

ROW = {
    "data_source": "nq",
    "question": "Who?",
    "reward_model": {"style": "rule", "ground_truth": ["Wu"]},
    "extra_info": {"index": 0},
}


def rewarded(ground_truth: Any) -> dict[str, Any]:
    return {**ROW, "reward_model": {"style": "rule", "ground_truth": ground_truth}}


def check(folder: Path, *rows: dict[str, Any], prompt_key: str = "question") -> None:
    path = folder / "train.parquet"
    pd.DataFrame(list(rows)).to_parquet(path)
    check_questions("data.train_files", path, prompt_key)


@pytest.mark.parametrize(
    "ground_truth", [{"target": ["Wu", "King Wu"]}, "Wu", ["Wu"], [["Wu"], ["King Wu"]], True, 1969], ids=str
)
def test_every_shape_of_ground_truth_is_taken(ground_truth: Any, tmp_path: Path) -> None:
    check(tmp_path, rewarded(ground_truth))
    (question,) = read_questions(tmp_path / "train.parquet")  # what the evaluation makes of the same file
    assert question.golden_answers == parse_gold_answers(ground_truth)


def test_chat_messages_are_taken_and_a_system_message_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user = {"role": "user", "content": "Who?"}
    check(tmp_path, {**ROW, "prompt": [user]}, prompt_key="prompt")
    assert capsys.readouterr().err == ""
    check(tmp_path, {**ROW, "prompt": [{"role": "system", "content": "Think."}, user]}, ROW | {"prompt": [user]},
          prompt_key="prompt")  # fmt: skip
    assert "left out 1 system messages (2 records in all)" in capsys.readouterr().err


def test_questions_of_several_data_sets_may_have_the_same_id(tmp_path: Path) -> None:
    check(tmp_path, {**ROW, "id": "train_0"}, {**ROW, "id": "train_0", "data_source": "hotpotqa"})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**ROW, "question": None}, "question: None was given; expected a text that is not blank"),
        ({**ROW, "question": "  "}, "question: '  ' was given"),
        (rewarded(None), "reward_model.ground_truth: None was given"),
        (rewarded([]), r"reward_model.ground_truth: \[\] was given"),
        (rewarded([" "]), r"reward_model.ground_truth: \[' '\] was given"),
        ({**ROW, "reward_model": None}, "none of reward_model.ground_truth, golden_answers, .* is set"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_row_is_named_before_anything_starts(bad: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^data\.train_files=\S+train\.parquet row 2: {message}.*; make it with"):
        check(tmp_path, ROW, bad)


def test_the_first_five_bad_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"6 of 8 records cannot be used\. The first 5: row 2: .* row 6: ") as caught:
        check(tmp_path, ROW, *[{**ROW, "question": ""}] * 6, ROW)
    assert "row 7" not in str(caught.value)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"
    pd.DataFrame({name: pd.Series(dtype=str) for name in ROW}).to_parquet(path)
    with pytest.raises(UserError, match=r"^data\.val_files=\S+empty\.parquet holds no question; make it with"):
        check_questions("data.val_files", path, "question")


def test_what_the_preparation_writes_is_taken_and_reads_the_same(tmp_path: Path) -> None:
    records = [
        {"question": "Who?", "answer": "Wu", "answer_aliases": ["King Wu"]},
        {"question": "When?", "answer": 1969},
    ]
    source = tmp_path / "musique.json"
    source.write_text(pd.Series(records).to_json(orient="values"))
    arguments = ["--train_data_path", str(source), "--dev_data_path", str(source), "--output_dir", str(tmp_path)]
    assert data_preprocess_hpqa.main(arguments) == 0
    check_questions("data.train_files", tmp_path / "train.parquet", "question")
    no_support = {"golden_doc_ids": [], "supporting_titles": []}
    expected = [replace(question, metadata=no_support) for question in read_questions(source, "train")]
    assert read_questions(tmp_path / "train.parquet") == expected
    write_parquet_files({tmp_path / "chat.parquet": [{**ROW, "question": [{"role": "user", "content": "Who?"}]}]})
    check_questions("data.train_files", tmp_path / "chat.parquet", "question")


def test_a_wrong_prompt_key_names_the_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks the columns \['query'\], it has .*'question'.* with data\.prompt_key"):
        check(tmp_path, ROW, prompt_key="query")


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A copy of the environment, without what users may have set for proxies, Ray and wandb."""
    clear_proxies(monkeypatch)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "RAY_"))}
    monkeypatch.setattr(os, "environ", kept)
    return kept


def test_a_run_sets_what_its_processes_inherit(environ: dict[str, str]) -> None:
    environ["ALL_PROXY"] = "socks5://proxy:1"
    set_environment(composed("cpu"))
    assert environ["WANDB_MODE"] == "offline"
    assert "127.0.0.1" in environ["no_proxy"].split(",")


def test_vllm_s_sampler_needs_no_nvcc(environ: dict[str, str], tmp_path: Path) -> None:
    environ |= {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    set_environment(composed("cpu"))
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in environ
    set_environment(composed("research"))
    assert environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    environ["VLLM_USE_FLASHINFER_SAMPLER"] = "1"
    set_environment(composed("research"))
    assert environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1", "the user's own"
    del environ["VLLM_USE_FLASHINFER_SAMPLER"]
    (tmp_path / "nvcc").write_text("")
    (tmp_path / "nvcc").chmod(0o755)
    set_environment(composed("research"))
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in environ


def test_the_look_before_the_start_includes_ray_and_wandb(environ: dict[str, str], closed_url: str) -> None:
    facts = TrainingFacts(composed("cpu", "trainer.default_local_dir=/runs/a"))
    assert not facts.ray.joins and not list(ray_is_there(facts))
    assert facts.wandb.mode == "offline" and not list(wandb_is_there(facts))
    environ |= {"RAY_ADDRESS": closed_url.removeprefix("http://"), "WANDB_API_KEY": "k" * 40}
    environ["WANDB_BASE_URL"] = closed_url
    facts = TrainingFacts(composed("cpu", "trainer.default_local_dir=/runs/a"))
    with pytest.raises(UserError, match="no Ray cluster answers at RAY_ADDRESS="):
        list(ray_is_there(facts))
    (offline,) = wandb_is_there(facts)
    assert offline.message.endswith("wandb sync /runs/a/wandb/offline-run-*")
    wandb.teardown()  # it reads the variables once
