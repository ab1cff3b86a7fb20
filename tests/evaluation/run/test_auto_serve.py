"""--auto_serve: its refusals, and the folder that it serves. test_run_eval.py covers a whole run."""

import json
import shutil
from pathlib import Path

import pytest

from evaluation.command_line import parse_command_line
from evaluation.run.auto_serve import check_auto_serve, exported_model, planned_model, server_options
from evaluation.run_eval import main
from flashrag.errors import UserError
from flashrag.system.engine import Engine

REPOSITORY = Path(__file__).resolve().parents[3]
BASE_MODEL = REPOSITORY / "training" / "demo" / "base_model"


def arguments(data_dir: Path, save_dir: Path, *more: str) -> list[str]:
    command = ["--config_path", str(REPOSITORY / "evaluation" / "eval_config.yaml"), "--method_name", "zero-shot"]
    command += ["--dataset_name", "kings", "--split", "dev", "--data_dir", str(data_dir), "--save_dir", str(save_dir)]
    return [*command, "--generator_max_input_len", "1024", "--max_response_tokens", "64", *more]


def test_keys_that_it_sets_cannot_be_given_as_flags(data_dir, tmp_path):
    command_line = parse_command_line(
        arguments(data_dir, tmp_path, "--auto_serve", str(BASE_MODEL), "--sgl_remote_url", "http://127.0.0.1:80")
    )
    with pytest.raises(UserError, match="--auto_serve and --sgl_remote_url were both given"):
        check_auto_serve(command_line)


def test_a_path_without_a_checkpoint_is_refused_before_anything_starts(data_dir, tmp_path, capsys):
    assert main(arguments(data_dir, tmp_path, "--auto_serve", str(tmp_path))) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_an_engine_is_for_a_model_that_is_served_meanwhile(data_dir, tmp_path):
    given = arguments(data_dir, tmp_path, "--engine", "sglang", "--dtype", "bfloat16")
    with pytest.raises(UserError, match="--engine sglang is for a model that is served meanwhile; add --auto_serve"):
        parse_command_line(given)
    command_line = parse_command_line([*given, "--auto_serve", str(BASE_MODEL)])
    options = server_options(BASE_MODEL, check_auto_serve(command_line), command_line)
    assert (options.engine, options.dtype, options.model_path) == (Engine.SGLANG, "bfloat16", BASE_MODEL)
    assert parse_command_line(arguments(data_dir, tmp_path)).engine is None


@pytest.mark.parametrize(("asked", "served"), [(640, 640), (8192, 2048)])
def test_a_model_is_served_with_the_context_of_the_evaluation_or_its_own_shorter_one(data_dir, tmp_path, asked, served):
    given = ["--generator_max_input_len", str(asked), "--auto_serve", str(BASE_MODEL)]
    command_line = parse_command_line(arguments(data_dir, tmp_path, *given))
    assert server_options(BASE_MODEL, check_auto_serve(command_line), command_line).context_length == served


def test_a_model_folder_is_served_where_it_lies(tmp_path):
    assert exported_model(BASE_MODEL) == planned_model(BASE_MODEL) == BASE_MODEL
    actor = tmp_path / "global_step_5" / "actor"
    shutil.copytree(BASE_MODEL, actor / "huggingface")
    (actor / "fsdp_config.json").write_text(json.dumps({"world_size": 8}))
    assert planned_model(tmp_path / "global_step_5") == actor / "huggingface"
