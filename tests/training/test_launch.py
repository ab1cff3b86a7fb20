"""The published command line: flags become overrides, mistakes are named, the key never becomes an argument."""

import os
import subprocess
from pathlib import Path

import pytest

from flashrag.errors import UserError
from training.launch import FLAGS, hydra_overrides, main, make_parser, parse_flags
from verl_search.settings import compose_config

REPOSITORY = Path(__file__).parents[2]
REQUIRED = [
    *("--actor_model_path", "m", "--search_url", "http://127.0.0.1:8000"),
    *("--train_data_path", "train.parquet", "--dev_data_path", "test.parquet", "--save_path", "out"),
]
PUBLISHED_FLAGS = {
    *("prompt_key", "train_batch_size", "ppo_mini_batch_size", "max_prompt_length", "max_response_length"),
    *("apply_chat", "prompt_template_name", "reward_manager", "rollout_n", "search_url", "project_name"),
    *("experiment_name", "nnodes", "n_gpus_per_node", "save_freq", "test_freq", "total_epochs", "save_path"),
    *("train_data_path", "dev_data_path", "actor_model_path"),
}


def test_every_published_flag_is_taken() -> None:
    assert set(FLAGS) == PUBLISHED_FLAGS


def test_help_says_what_each_flag_means_and_its_published_default() -> None:
    text = " ".join(make_parser().format_help().split())
    for line in (
        "--max_response_length TOKENS longest response, with its search results (default: 8192)",
        "--rollout_n N responses for each question: the size of a group (default: 5)",
        "--reward_manager {qa,qa_f1} how an answer is scored: exact match (qa) or F1 (qa_f1) (default: qa)",
        "--apply_chat BOOL use the model's chat template (instruct models) (default: False)",
        "--search_url URL the retrieval server",
        "--save_freq STEPS steps between two checkpoints (default: 10)",
    ):
        assert line in text
    assert "(default: None)" not in text


def test_flags_become_overrides_that_compose() -> None:
    flags, extra = parse_flags(
        [*REQUIRED, "--rollout_n", "3", "--apply_chat", "False", "--reward_manager", "qa_f1", "search.top_n=2"]
    )
    overrides = [o for o in [*hydra_overrides(flags), *extra] if not o.startswith("hydra.")]
    config = compose_config("research", overrides)
    assert config.actor_rollout_ref.rollout.n == 3
    assert config.search.apply_chat is False
    assert config.search.answer_metric == "f1"
    assert config.search.top_n == 2
    assert config.data.train_files == "train.parquet"
    assert config.data.train_batch_size == 256  # not given: the published value


def test_paths_with_unusual_characters_survive() -> None:
    odd = "it's a=[path], {really}"
    flags, _ = parse_flags([*REQUIRED, "--actor_model_path", odd])
    overrides = [o for o in hydra_overrides(flags) if not o.startswith("hydra.")]
    assert compose_config("research", overrides).actor_rollout_ref.model.path == odd


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*REQUIRED, "--rolout_n", "3"], r"unknown argument '--rolout_n'; did you mean '--rollout_n'\?"),
        ([*REQUIRED, "--zzz"], "unknown argument '--zzz'; --help shows the arguments"),
        ([*REQUIRED, "stray"], "unknown argument 'stray'"),
        (REQUIRED[2:], "the following arguments are required: --actor_model_path"),
        ([*REQUIRED, "--rollout_n", "many"], "invalid int value: 'many'"),
        ([*REQUIRED, "--apply_chat", "yes"], "'yes' is neither true nor false"),
        ([*REQUIRED, "--reward_manager", "math"], "argument --reward_manager: invalid choice: 'math'"),
        ([*REQUIRED, "--wandb_api_key", "secret"], "export WANDB_API_KEY"),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_flags(argv)
    assert "secret" not in str(caught.value)


def test_a_missing_file_ends_with_code_2_before_any_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--config_name", "cpu"]) == 2
    assert capsys.readouterr().err == (
        "error: data.train_files=train.parquet does not exist; make it with training/data_preprocess_hpqa.py\n"
    )


@pytest.mark.parametrize("key_flag", [["--wandb_api_key", "s3cret"], ["--wandb_api_key=s3cret"]])
def test_run_sh_moves_the_key_into_the_environment(tmp_path: Path, key_flag: list[str]) -> None:
    # run.sh as it is, beside a set-up that does nothing and a python that shows what it was given.
    for folder in ("training", "scripts", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "training/run.sh").write_text((REPOSITORY / "training/run.sh").read_text())
    (tmp_path / "scripts/setup.sh").write_text("exit 0\n")
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "arguments: $*"\necho "key: $WANDB_API_KEY"\n')
    python.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"}
    done = subprocess.run(
        ["bash", tmp_path / "training/run.sh", "--rollout_n", "3", *key_flag, "a b=c"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "arguments: -m training.launch --rollout_n 3 a b=c\nkey: s3cret\n"
