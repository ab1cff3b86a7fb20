import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashrag.preflight import Finding, PreflightFailed, Severity, examine
from flashrag.system import engine, model_server
from flashrag.system.engine import Engine, ModelServerOptions
from flashrag.system.local_server import free_port
from flashrag.system.model_server import RULES, ModelServerFacts, main, parse_args

REPOSITORY = Path(__file__).parents[3]
BASE_MODEL = REPOSITORY / "training" / "demo" / "base_model"
GIB = 2**30


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return shutil.copytree(BASE_MODEL, tmp_path / "ein Modell ½")


@pytest.fixture
def options(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelServerOptions]:
    """`options(**changes)`: to serve the demo's model on vLLM for CPUs."""
    for module in (engine, model_server):
        monkeypatch.setattr(module, "vllm_is_for_cpus", lambda: True)
    return lambda **changes: ModelServerOptions(
        **{"model_path": model_folder, "engine": Engine.VLLM, "log_path": tmp_path / "logs" / "log", **changes}
    )


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`gpus(*GiB)`: the GPUs of the machine, and vLLM for them."""

    def install(*memory: int) -> None:
        monkeypatch.setattr(model_server, "gpu_memory_bytes", lambda: [gib * GIB for gib in memory])
        monkeypatch.setattr(engine, "count_gpus", lambda: len(memory))
        for module in (engine, model_server):
            monkeypatch.setattr(module, "vllm_is_for_cpus", lambda: False)

    return install


def found(options: ModelServerOptions) -> list[Finding]:
    return examine(RULES, ModelServerFacts(options))


def configure(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_a_good_model_would_be_served(options):
    assert found(options()) == []


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "export_checkpoint"), ("model.safetensors", "weights"),
                             ("tokenizer.json", "tokenizer")],
)  # fmt: skip
def test_a_folder_without_a_model_is_refused(model_folder, missing, message, capsys):
    (model_folder / missing).unlink()
    (model_folder / "tokenizer_config.json").unlink()
    assert main(["--model_path", str(model_folder), "--engine", "vllm"]) == 2
    assert message in capsys.readouterr().err


def test_the_command_with_nothing_but_a_model_has_usable_defaults():
    options = parse_args(["--model_path", "m"])
    assert (options.host, options.port, options.log_path) == ("127.0.0.1", 8010, Path("outputs/model_server.log"))
    assert (options.engine, options.tp, options.context_length, options.extra) == (None, None, None, ())


def test_a_longer_context_than_the_model_takes_is_refused(options):
    (finding,) = found(options(context_length=4096))
    assert (finding.severity, finding.rule) == (Severity.ERROR, "model.context")
    assert finding.message.startswith("--context_length 4096: the model takes 2048 tokens")


def test_an_address_that_cannot_be_had_is_refused(options):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (finding,) = found(options(port=port))
    assert finding.rule == "server.address"
    assert f"--port {port}: cannot listen on 127.0.0.1:{port} (Address already in use)" in finding.message
    (finding,) = found(options(host="203.0.113.7"))
    assert "--host '203.0.113.7' is not an address of this machine" in finding.message


def test_an_open_address_is_warned_about(options):
    (finding,) = found(options(host="0.0.0.0"))
    assert (finding.severity, finding.rule) == (Severity.WARNING, "server.address")
    assert found(options(host="0.0.0.0", extra=("--api-key", "k"))) == []
    assert ModelServerFacts(options(host="0.0.0.0", port=81)).url == "http://127.0.0.1:81"
    assert ModelServerFacts(options(host="::1", port=81)).url == "http://[::1]:81"


def test_a_log_that_cannot_be_written_is_refused(options, model_folder):
    (finding,) = found(options(log_path=model_folder))
    assert (finding.rule, finding.message) == (
        "server.log",
        f"--log_path {model_folder} is a folder; give a file in it",
    )
    (finding,) = found(options(log_path=model_folder / "config.json" / "log"))
    assert "config.json is a file" in finding.message


def test_keys_and_values_beyond_what_the_server_keeps_are_refused(options, model_folder, monkeypatch):
    # 2 x 32 heads x 128 x 4 layers x 4 bytes = 131,072 bytes a token; 1 GiB, a quarter of the memory, holds 8,192.
    monkeypatch.setattr("flashrag.preflight.machine._memory_bytes", lambda: 4 * GIB)
    configure(model_folder, num_key_value_heads=32, head_dim=128, max_position_embeddings=16384)
    assert found(options(context_length=8192)) == []
    (finding,) = found(options(context_length=8193))
    assert (finding.severity, finding.rule) == (Severity.ERROR, "server.memory")
    assert "8193 tokens needs 1.0 GiB for keys and values" in finding.message
    assert finding.message.endswith("give --context_length 8192 or less")
    (finding,) = found(options(context_length=8193, extra=("--max-model-len", "64")))
    assert finding.severity is Severity.WARNING, "an argument of the engine may mend it"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    (finding,) = found(options(context_length=8193))
    assert finding.severity is Severity.WARNING, "vLLM's own variable may mend it"


def test_a_model_larger_than_the_memory_is_refused(options, monkeypatch):
    facts = ModelServerFacts(options())
    monkeypatch.setattr(facts.__class__, "weight_bytes", facts.machine.memory_bytes)
    (finding,) = examine(RULES, facts)
    assert finding.rule == "server.memory"
    assert "of weights in float32, 1.0 GiB for keys and values, the engine); this machine has" in finding.message


def test_gpus_are_shared_and_counted(options, gpus, monkeypatch):
    gpus(80, 80)
    assert found(options()) == []
    (finding,) = found(options(tp=4))
    assert (finding.rule, finding.message) == (
        "server.gpus",
        "--tp 4 was given, but this machine has 2 GPUs; give at most 2",
    )
    monkeypatch.setattr(ModelServerFacts, "weight_bytes", 150 * GIB)
    (finding,) = found(options())
    assert finding.message.startswith(
        "each of 2 GPUs needs 75.0 GiB (150.0 GiB of weights and 4 MiB of keys and values"
    )
    assert "has 72.0 GiB for it: raise --tp" in finding.message


def test_an_engine_for_gpus_needs_one(options, gpus):
    gpus()
    (finding,) = found(options())
    assert finding.message == "vllm computes on GPUs, but this machine shows none; run scripts/setup.sh --device cpu"


def test_sglang_for_gpus_needs_one_and_for_a_cpu_does_not(options, gpus, monkeypatch):
    gpus()
    monkeypatch.setenv("RESEARCH_SGLANG_PYTHON", sys.executable)
    (finding,) = found(options(engine=Engine.SGLANG))
    assert (finding.rule, finding.message) == (
        "server.gpus",
        "sglang computes on GPUs, but this machine shows none; run scripts/setup.sh --sglang --device cpu",
    )
    for module in (engine, model_server):
        monkeypatch.setattr(module, "sglang_is_for_cpus", lambda: True)
    facts = ModelServerFacts(options(engine=Engine.SGLANG))
    assert examine(RULES, facts) == []
    assert (facts.on_cpu, facts.item_bytes, facts.environment["SGLANG_USE_CPU_ENGINE"]) == (True, 4, "1")


@pytest.mark.parametrize("python", ["/no/python", "python3"])
def test_a_python_that_is_not_there_is_named(python, options, gpus, monkeypatch):
    gpus(80, 80)
    monkeypatch.setenv("RESEARCH_SGLANG_PYTHON", python)
    (finding,) = found(options(engine=Engine.SGLANG))
    assert finding.rule == "server.engine"
    assert finding.message.startswith(f"RESEARCH_SGLANG_PYTHON={python} is not a file")


def test_an_engine_that_is_not_there_is_one_line_with_the_way_to_it(options, monkeypatch, tmp_path):
    monkeypatch.delenv("RESEARCH_SGLANG_PYTHON", raising=False)
    monkeypatch.setattr(engine, "SGLANG_PYTHON", tmp_path / "none")
    (finding,) = found(options(engine=Engine.SGLANG))
    assert finding.message == (
        f"engine sglang needs its environment, and {tmp_path / 'none'} does not exist; run scripts/setup.sh --sglang, "
        "or point RESEARCH_SGLANG_PYTHON at the python that has it"
    )


def test_all_errors_keep_a_server_from_starting(options, model_folder):
    (model_folder / "model.safetensors").write_bytes(b"")
    with (
        pytest.raises(PreflightFailed, match=r"2 things keep this from starting"),
        model_server.model_server(options(host="203.0.113.7")),
    ):
        pass


def test_the_check_says_what_would_run_and_writes_nothing(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    assert main(["--model_path", str(model_folder), "--engine", "vllm", "--port", str(port), "--check"]) == 0
    told = capsys.readouterr().out
    for line in (
        f"folder              {model_folder}",
        "parameters          1,154,816 (float32, 4 MiB of files)",
        "context             2048 tokens; the model takes 2048",
        "a sequence ends at  <|endoftext|> (0); generation_config.json: 0",
        f"address    http://127.0.0.1:{port}",
        f"log        {tmp_path}/outputs/model_server.log",
        "0 errors: this would start",
    ):
        assert f"  {line}\n" in told
    assert f"api_server --model '{model_folder}' --served-model-name '{model_folder}'" in told
    assert [path.name for path in tmp_path.iterdir()] == [model_folder.name]


def test_the_check_of_a_missing_model_is_complete_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--model_path", "no such", "--host", "203.0.113.7", "--check"]) == 2
    told = capsys.readouterr().out
    assert "  command    unknown\n" in told
    assert "model_path=no such does not exist" in told
    assert "--host '203.0.113.7' is not an address of this machine" in told
    assert told.endswith("  2 errors: this would not start\n")


def test_arguments_after_two_dashes_go_to_the_engine():
    options = parse_args(["--model_path", "m", "--engine", "vllm", "--", "--max-num-seqs", "8"])
    assert (options.engine, options.extra) == (Engine.VLLM, ("--max-num-seqs", "8"))
