import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flashrag.errors import UserError
from flashrag.system import engine
from flashrag.system.engine import Engine, ModelServerOptions, chosen_engine, sglang_command, vllm_command

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = shutil.copytree(BASE_MODEL, tmp_path / "model")
    positions(folder, 32768)
    return folder


def positions(folder: Path, tokens: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": tokens}))


def test_sglang_gets_the_published_options(model_folder, monkeypatch):
    monkeypatch.setenv("RESEARCH_SGLANG_PYTHON", "/sgl/bin/python")
    monkeypatch.setattr(engine, "count_gpus", lambda: 8)
    command = sglang_command(ModelServerOptions(model_folder, served_model_name="trained", host="0.0.0.0"), 80)
    assert command == (
        f"/sgl/bin/python -m sglang.launch_server --served-model-name trained --model-path {model_folder} "
        # 6 tokens more than the 8192 that a prompt and its response may have
        "--context-length 8198 --enable-metrics --disable-overlap-schedule --host 0.0.0.0 --port 80 "
        "--tp-size 2 --disable-radix-cache --dtype bfloat16"
    ).split(" ")
    assert "SGLANG_USE_CPU_ENGINE" not in engine.sglang_environment()


def test_sglang_on_a_cpu_is_told_by_its_environment(model_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "count_gpus", lambda: 8)
    python = tmp_path / "env" / "bin" / "python"
    packages = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    (packages / "sgl_kernel_stand_in-0.1.0.dist-info").mkdir(parents=True)
    (packages / "sgl_kernel_stand_in-0.1.0.dist-info" / "METADATA").write_text("Name: sgl-kernel-stand-in\n")
    monkeypatch.setenv("RESEARCH_SGLANG_PYTHON", str(python))
    options = ModelServerOptions(model_folder, context_length=634, extra=("--api-key", "k"))
    assert sglang_command(options, 80) == (
        f"{python} -m sglang.launch_server --served-model-name {model_folder} --model-path {model_folder} "
        "--context-length 640 --enable-metrics --disable-overlap-schedule --host 127.0.0.1 --port 80 "
        "--device cpu --attention-backend torch_native --grammar-backend none "
        "--max-running-requests 64 --max-total-tokens 40960 --sleep-on-idle --dtype float32 --api-key k"  # 64 x 640
    ).split(" ")
    variables = engine.sglang_environment()
    assert (variables["SGLANG_USE_CPU_ENGINE"], variables["OMP_NUM_THREADS"]) == ("1", "1")


@pytest.fixture
def memory(monkeypatch):
    """`memory(GiB)`: that of the machine."""

    def install(gib: float) -> None:
        monkeypatch.setattr("flashrag.preflight.machine._memory_bytes", lambda: int(gib * 2**30))

    return install


def test_keys_and_values_of_all_sequences_at_once_have_room_within_a_quarter_of_the_memory(model_folder, memory):
    # 2 x 4 heads x 32 x 4 layers x 4 bytes = 4096 bytes a token, 64 sequences of 8192 tokens: 2 GiB.
    options = ModelServerOptions(model_folder)
    memory(24)
    assert engine.cpu_cache_bytes(options) == 2 * 2**30
    assert engine.cpu_cache_bytes(replace(options, context_length=16384)) == 4 * 2**30
    assert engine.cpu_cache_bytes(replace(options, context_length=16384, dtype="bfloat16")) == 2 * 2**30
    assert engine.cpu_cache_bytes(replace(options, context_length=512)) == 2**30, "at least 1 GiB"
    memory(6)
    assert engine.cpu_cache_bytes(options) == 1.5 * 2**30
    memory(2)
    assert engine.cpu_cache_bytes(options) == 2**30


def test_sglang_keeps_as_many_keys_and_values_on_a_cpu_as_the_memory_holds(model_folder, memory):
    def cached(context: int) -> int:
        return engine._cached_tokens(ModelServerOptions(model_folder), context)

    memory(4)  # of which a quarter holds 262144 tokens of 4096 bytes
    assert cached(8198) == 262144
    assert cached(300_000) == 300_000  # one sequence always fits; the memory rule refuses what does not
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, "kv_lora_rank": 8}))
    assert cached(100) == 6400  # unknown


def test_vllm_computes_in_float32_on_a_cpu_and_in_bfloat16_on_gpus(model_folder, monkeypatch):
    monkeypatch.setattr(engine, "vllm_is_for_cpus", lambda: True)
    on_cpu = vllm_command(ModelServerOptions(model_folder, context_length=512), 81)
    asked = vllm_command(ModelServerOptions(model_folder, dtype="bfloat16"), 81)
    assert asked[asked.index("--dtype") + 1] == "bfloat16"
    assert on_cpu[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert on_cpu[on_cpu.index("--dtype") + 1] == "float32"
    assert on_cpu[on_cpu.index("--kv-cache-memory-bytes") + 1] == str(2**30)
    monkeypatch.setattr(engine, "vllm_is_for_cpus", lambda: False)
    monkeypatch.setattr(engine, "count_gpus", lambda: 1)
    on_gpu = vllm_command(ModelServerOptions(model_folder), 81)
    assert on_gpu[on_gpu.index("--dtype") + 1] == "bfloat16"
    assert on_gpu[on_gpu.index("--tensor-parallel-size") + 1] == "1"


def test_vllm_on_a_cpu_takes_every_core_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(engine, "vllm_is_for_cpus", lambda: True)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert engine.vllm_environment()["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    variables = engine.vllm_environment()
    assert variables["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"


def test_vllm_samples_without_flashinfer_where_nothing_can_compile_it(monkeypatch):
    name = "VLLM_USE_FLASHINFER_SAMPLER"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine, "has_nvcc", lambda: False)
    monkeypatch.setattr(engine, "vllm_is_for_cpus", lambda: False)
    assert engine.vllm_environment()[name] == "0"
    monkeypatch.setenv(name, "1")
    assert name not in engine.vllm_environment(), "the user's own"
    monkeypatch.delenv(name)
    monkeypatch.setattr(engine, "has_nvcc", lambda: True)
    assert name not in engine.vllm_environment()
    monkeypatch.setattr(engine, "vllm_is_for_cpus", lambda: True)
    assert name not in engine.vllm_environment()


def test_the_context_is_never_longer_than_the_model_takes(model_folder):
    assert engine.context_tokens(ModelServerOptions(model_folder)) == 8192
    positions(model_folder, 640)
    assert engine.context_tokens(ModelServerOptions(model_folder)) == 640
    assert engine.context_tokens(ModelServerOptions(model_folder, context_length=512)) == 512


def test_an_engine_that_is_not_there_is_refused_with_the_way_to_it(model_folder, monkeypatch):
    monkeypatch.delenv("RESEARCH_SGLANG_PYTHON", raising=False)
    monkeypatch.setattr(engine, "SGLANG_PYTHON", model_folder / "none")
    with pytest.raises(UserError, match=r"run scripts/setup\.sh --sglang, or point RESEARCH_SGLANG_PYTHON"):
        sglang_command(ModelServerOptions(model_folder), 80)
    with pytest.raises(UserError, match="engine sglang needs its environment"):
        chosen_engine(ModelServerOptions(model_folder, Engine.SGLANG))


def test_sglang_is_the_engine_with_a_gpu_unless_its_build_is_for_cpus(model_folder, monkeypatch):
    monkeypatch.setattr(engine, "count_gpus", lambda: 1)
    monkeypatch.setenv("RESEARCH_SGLANG_PYTHON", sys.executable)
    assert chosen_engine(ModelServerOptions(model_folder)) is Engine.SGLANG
    monkeypatch.setattr(engine, "sglang_is_for_cpus", lambda: True)
    assert chosen_engine(ModelServerOptions(model_folder)) is Engine.VLLM
    assert chosen_engine(ModelServerOptions(model_folder, Engine.SGLANG)) is Engine.SGLANG


def test_vllm_is_the_engine_without_a_gpu(model_folder, monkeypatch):
    monkeypatch.setattr(engine, "count_gpus", lambda: 0)
    assert chosen_engine(ModelServerOptions(model_folder)) is Engine.VLLM
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="neither SGLang nor vLLM is installed"):
        chosen_engine(ModelServerOptions(model_folder))
    with pytest.raises(UserError, match="engine vllm is not installed here"):
        chosen_engine(ModelServerOptions(model_folder, Engine.VLLM))
