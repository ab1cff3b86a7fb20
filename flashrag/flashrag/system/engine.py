"""The engines that serve a model, SGLang and vLLM, on GPUs and on a CPU, and their command lines.

Source of SGLang's options on GPUs: the project's published evaluation commands. Two differ on purpose: the server
listens on 127.0.0.1 by default, and runs no code from the model folder unless an option after -- says so. Its options
on a CPU were found by trying (docs/evaluation.md). Does not cover: starting a server (model_server.py).
"""

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flashrag.errors import UserError
from flashrag.generator import ModelFolder
from flashrag.generator.server import SGLANG_RESERVED_TOKENS
from flashrag.preflight import CHECK_HELP, Machine
from flashrag.system.arguments import flag, in_range
from flashrag.system.local_server import LOOPBACK
from flashrag.system.machine import count_gpus, has_nvcc, kept_memory, waiting_threads

MODEL, SERVER = "model", "server"  # the groups of --help
PRECISIONS = ("float32", "bfloat16")
PUBLISHED_CONTEXT_TOKENS = 8192
PUBLISHED_TENSOR_PARALLEL = 2
# By default vLLM on a CPU starts a worker process; it and the engine wait for each other by spinning, which keeps two
# cores busy. A single process gives the same results. In training: verl_search/config/cpu.yaml.
ONE_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
# Prefixes are cached by whole blocks. With vLLM's default on a CPU, 128 tokens, the next turn of a question computes 64
# of its tokens again on average. 32 is the smallest block that vLLM's attention for CPUs prefers.
CACHE_BLOCK_TOKENS = 32
CPU_CACHE_PART, LEAST_CPU_CACHE_BYTES = 4, 2**30  # for keys and values: at most a 4th of the memory, at least 1 GiB
CPU_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"  # a user's own size of it, which vLLM prefers to its option
FLASHINFER_VARIABLE = "VLLM_USE_FLASHINFER_SAMPLER"
CPU_SEQUENCES = 64  # at once
# Beside the environment of this process, where scripts/setup.sh puts it.
SGLANG_PYTHON = Path(sys.prefix).parent / ".venv-sglang" / "bin" / "python"
SGLANG_REMEDY = "run scripts/setup.sh --sglang, or point RESEARCH_SGLANG_PYTHON at the python that has it"
CPU_KERNELS = "sgl-kernel-stand-in"  # scripts/sglang_cpu: installed with SGLang for CPUs alone


class Engine(StrEnum):
    SGLANG = "sglang"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class ModelServerOptions:
    """The model to serve, the address and the engine. A `None` is filled in to suit the machine."""

    model_path: Path = flag("Hugging Face folder; scripts/export_checkpoint.sh makes one of a checkpoint", group=MODEL)
    engine: Engine | None = flag("default: sglang if its GPU build and a GPU are there, else vllm", None, group=MODEL)
    served_model_name: str | None = flag(
        "the name that clients ask for (default: the model's path)", None, metavar="NAME", group=MODEL
    )
    host: str = flag("address to listen on; 0.0.0.0 for other machines", LOOPBACK, metavar="ADDRESS", group=SERVER)
    port: int = flag("port to listen on; 0 takes a free one", 0, type=in_range(int, 0, 65535), group=SERVER)
    tp: int | None = flag(
        f"GPUs that share the model (default: {PUBLISHED_TENSOR_PARALLEL}, or 1 where there is one GPU)",
        None, type=in_range(int, 1), group=MODEL,
    )  # fmt: skip
    dtype: str | None = flag(
        "precision of weights and computing (default: bfloat16 on GPUs, float32 on a CPU)",
        None, choices=PRECISIONS, group=MODEL,
    )  # fmt: skip
    context_length: int | None = flag(
        f"prompt and response (default: {PUBLISHED_CONTEXT_TOKENS}, or the model's positions where they are fewer)",
        None, type=in_range(int, 1), metavar="TOKENS", group=MODEL,
    )  # fmt: skip
    log_path: Path = flag("file that the engine's output goes to", Path("outputs/model_server.log"), group=SERVER)
    check: bool = flag(CHECK_HELP, False, group=SERVER)
    extra: tuple[str, ...] = ()


def chosen_engine(options: ModelServerOptions) -> Engine:
    """The given engine, or SGLang, as published, if its environment for GPUs and a GPU are present, else vLLM.

    Raises `UserError` if it is not installed.
    """
    has_sglang = _sglang_python() is not None and not sglang_is_for_cpus()
    engine = options.engine or (Engine.SGLANG if count_gpus() and has_sglang else Engine.VLLM)
    if engine is Engine.SGLANG:
        _installed_sglang()
    if engine is Engine.VLLM and importlib.util.find_spec("vllm") is None:
        given = "engine vllm is not installed here" if options.engine else "neither SGLang nor vLLM is installed"
        raise UserError(f"{given}; run scripts/setup.sh for vLLM. For SGLang: {SGLANG_REMEDY}")
    return engine


def sglang_command(options: ModelServerOptions, port: int) -> list[str]:
    """The published command on GPUs; since sglang 0.5 its `--tp` and `--disable-overlap` have longer names.

    On a CPU: torch's own attention. SGLang keeps some tokens of its context to itself, so that it gets
    these in addition.
    """
    context = context_tokens(options) + SGLANG_RESERVED_TOKENS
    command = [_installed_sglang(), "-m", "sglang.launch_server"]
    command += ["--served-model-name", served_name(options), "--model-path", str(options.model_path)]
    command += ["--context-length", str(context), "--enable-metrics", "--disable-overlap-schedule"]
    command += ["--host", options.host, "--port", str(port)]
    if sglang_is_for_cpus():
        command += ["--device", "cpu", "--attention-backend", "torch_native"]
        command += ["--grammar-backend", "none", "--max-running-requests", str(CPU_SEQUENCES)]
        # Without the former, keys and values take all memory; without the latter, an idle server keeps a core busy.
        command += ["--max-total-tokens", str(_cached_tokens(options, context)), "--sleep-on-idle"]
    else:
        command += ["--tp-size", str(tensor_parallel(options)), "--disable-radix-cache"]
    return [*command, "--dtype", precision(options, on_cpu=sglang_is_for_cpus()), *options.extra]


def _cached_tokens(options: ModelServerOptions, context: int) -> int:
    """Tokens whose keys and values are kept: as many as the sequences at once can use, and the memory holds."""
    a_token = _cache_bytes(options, 1)
    held = cpu_cache_bytes(options) // a_token if a_token else CPU_SEQUENCES * context
    return max(context, min(held, CPU_SEQUENCES * context))


def cpu_cache_bytes(options: ModelServerOptions) -> int:
    """Memory on a CPU for keys and values: as much as all sequences at once can use, within a quarter of the machine's.

    An engine that has less drops the beginning of an episode before its next turn, and computes it again.
    """
    wanted = CPU_SEQUENCES * _cache_bytes(options, context_tokens(options))
    return max(LEAST_CPU_CACHE_BYTES, min(wanted, Machine.here().memory_bytes // CPU_CACHE_PART))


def _cache_bytes(options: ModelServerOptions, tokens: int) -> int:
    return ModelFolder(options.model_path, "model_path").model.cache_bytes(tokens, item_bytes(options, on_cpu=True))


def sglang_environment() -> dict[str, str]:
    """Ask no model hub, generate nothing for /health, and allow the few tokens beyond the model's positions that
    SGLang keeps to itself. On a CPU: one thread.
    """
    variables = {
        "HF_HUB_OFFLINE": "1",
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
    }
    return {**variables, "SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"} if sglang_is_for_cpus() else variables


def sglang_is_for_cpus() -> bool:
    """Whether the environment of SGLang is that for CPUs."""
    packages = Path(_sglang_python() or SGLANG_PYTHON).parent.parent.glob("lib/python3*/site-packages")
    return any(importlib.metadata.distributions(name=CPU_KERNELS, path=[str(folder) for folder in packages]))


def vllm_command(options: ModelServerOptions, port: int) -> list[str]:
    """vLLM's server: eager on a CPU, as the trainer computes there."""
    # `vllm serve` looks for a distribution named vllm; the CPU build has another name. Its module can be run.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.model_path)]
    command += ["--served-model-name", served_name(options), "--host", options.host, "--port", str(port)]
    command += ["--max-model-len", str(context_tokens(options))]
    if vllm_is_for_cpus():
        command += ["--enforce-eager", "--max-num-seqs", str(CPU_SEQUENCES)]
        command += ["--distributed-executor-backend", ONE_PROCESS_EXECUTOR, "--block-size", str(CACHE_BLOCK_TOKENS)]
        command += ["--kv-cache-memory-bytes", str(cpu_cache_bytes(options))]
    else:
        command += ["--tensor-parallel-size", str(tensor_parallel(options))]
    return [*command, "--dtype", precision(options, on_cpu=vllm_is_for_cpus()), *options.extra]


def vllm_is_for_cpus() -> bool:
    """Whether the installed vLLM is the CPU build, which computes on the CPU even where there is a GPU."""
    return any(importlib.metadata.distributions(name="vllm-cpu"))


def vllm_environment() -> dict[str, str]:
    """Send no usage statistics. On a CPU: freed memory that is kept, and threads that are not pinned, and soon
    sleep.

    On GPUs FlashInfer's sampler is left out where there is no nvcc, which compiles it at its first use.
    """
    private = {"VLLM_NO_USAGE_STATS": "1"}
    if not vllm_is_for_cpus():
        return private if has_nvcc() or FLASHINFER_VARIABLE in os.environ else {**private, FLASHINFER_VARIABLE: "0"}
    return {
        **private,
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0))),
        **waiting_threads(),
        **kept_memory(),
    }


def precision(options: ModelServerOptions, *, on_cpu: bool) -> str:
    """Float32 on a CPU, where both engines give the same answers in it; bfloat16 on GPUs, as published."""
    return options.dtype or ("float32" if on_cpu else "bfloat16")


def item_bytes(options: ModelServerOptions, *, on_cpu: bool) -> int:
    """Of a number in the engine."""
    return 4 if precision(options, on_cpu=on_cpu) == "float32" else 2


def served_name(options: ModelServerOptions) -> str:
    return options.served_model_name or str(options.model_path)


def tensor_parallel(options: ModelServerOptions) -> int:
    """GPUs that share the model: two, as published, or one where there is no second."""
    return options.tp or max(1, min(PUBLISHED_TENSOR_PARALLEL, count_gpus()))


def context_tokens(options: ModelServerOptions) -> int:
    """The published context, or the model's positions where they are fewer."""
    positions = ModelFolder(options.model_path, "model_path").model.positions
    return options.context_length or min(PUBLISHED_CONTEXT_TOKENS, positions or PUBLISHED_CONTEXT_TOKENS)


def _installed_sglang() -> str:
    """The python of SGLang's environment. Raises `UserError` if there is none."""
    if (python := _sglang_python()) is None:
        raise UserError(f"engine sglang needs its environment, and {SGLANG_PYTHON} does not exist; {SGLANG_REMEDY}")
    return python


def _sglang_python() -> str | None:
    return os.environ.get("RESEARCH_SGLANG_PYTHON") or (str(SGLANG_PYTHON) if SGLANG_PYTHON.is_file() else None)
