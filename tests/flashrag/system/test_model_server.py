import json
import sys
from pathlib import Path

import pytest

from flashrag.errors import UserError
from flashrag.system import model_server
from flashrag.system.model_server import Engine, ModelServerOptions, main, parse_args, sglang_command, vllm_command


@pytest.fixture
def model_folder(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 32768}))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    return tmp_path


def test_sglang_gets_the_published_options(model_folder, monkeypatch):
    monkeypatch.setenv("RESEARCH_SGLANG_PYTHON", "/sgl/bin/python")
    monkeypatch.setattr(model_server, "count_gpus", lambda: 8)
    command = sglang_command(ModelServerOptions(model_folder, served_model_name="trained", host="0.0.0.0"), 80)
    assert command == (
        f"/sgl/bin/python -m sglang.launch_server --served-model-name trained --model-path {model_folder} "
        "--tp-size 2 --context-length 8192 --enable-metrics --dtype bfloat16 "
        "--host 0.0.0.0 --port 80 --disable-overlap-schedule --disable-radix-cache"
    ).split(" ")


def test_vllm_computes_in_float32_on_a_cpu_and_in_bfloat16_on_gpus(model_folder, monkeypatch):
    monkeypatch.setattr(model_server, "vllm_is_for_cpus", lambda: True)
    on_cpu = vllm_command(ModelServerOptions(model_folder), 81)
    assert on_cpu[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert on_cpu[on_cpu.index("--dtype") + 1] == "float32"
    monkeypatch.setattr(model_server, "vllm_is_for_cpus", lambda: False)
    monkeypatch.setattr(model_server, "count_gpus", lambda: 1)
    on_gpu = vllm_command(ModelServerOptions(model_folder), 81)
    assert on_gpu[on_gpu.index("--dtype") + 1] == "bfloat16"
    assert on_gpu[on_gpu.index("--tensor-parallel-size") + 1] == "1"


def test_the_context_is_never_longer_than_the_model_takes(model_folder):
    assert model_server.context_tokens(ModelServerOptions(model_folder)) == 8192
    (model_folder / "config.json").write_text(json.dumps({"max_position_embeddings": 640}))
    assert model_server.context_tokens(ModelServerOptions(model_folder)) == 640
    assert model_server.context_tokens(ModelServerOptions(model_folder, context_length=512)) == 512


def test_an_engine_that_is_not_there_is_refused_with_the_way_to_it(model_folder, monkeypatch):
    monkeypatch.delenv("RESEARCH_SGLANG_PYTHON", raising=False)
    monkeypatch.chdir(model_folder)
    with pytest.raises(UserError, match=r"requirements-sglang\.txt"):
        sglang_command(ModelServerOptions(model_folder), 80)


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "export_checkpoint"), ("model.safetensors", "weights"),
                             ("tokenizer.json", "tokenizer")],
)  # fmt: skip
def test_a_folder_without_a_model_is_refused(model_folder, missing, message, capsys):
    (model_folder / missing).unlink()
    assert main(["--model_path", str(model_folder), "--engine", "vllm"]) == 2
    assert message in capsys.readouterr().err


def test_the_command_with_nothing_but_a_model_has_usable_defaults():
    options = parse_args(["--model_path", "m"])
    assert (options.host, options.port, options.log_path) == ("127.0.0.1", 8010, Path("outputs/model_server.log"))
    assert (options.engine, options.tp, options.context_length, options.extra) == (None, None, None, ())


def test_arguments_after_two_dashes_go_to_the_engine():
    options = parse_args(["--model_path", "m", "--engine", "vllm", "--", "--max-num-seqs", "8"])
    assert (options.engine, options.extra) == (Engine.VLLM, ("--max-num-seqs", "8"))
