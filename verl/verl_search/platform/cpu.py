"""A verl platform for machines without an accelerator: torch on CPU, gloo, weights through shared memory.

Registered last, so verl's own detection finds it only without an accelerator. Ray slots stand in for devices:
`ray.init(num_gpus=N)` gives N of them. Does not cover: the patches that upstream needs on a CPU (upstream.py).
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase

PLATFORM_VARIABLE = "VERL_PLATFORM"
# Two cores serve everything in the embedded default, so the engine's KV cache is small by default.
DEFAULT_KV_CACHE_GIB = "1"


def is_for_this_process() -> bool:
    """Whether verl may choose this platform: it is asked for, or torch has no other device.

    The head of a cluster may have no GPU, and verl's detection ends at the platform that is always there.
    """
    asked = os.environ.get(PLATFORM_VARIABLE, "").strip().lower()
    return asked == PlatformCPU.device_name or (torch.version.cuda is None and torch.version.hip is None)


def _memory_in_use(*_: Any) -> int:
    return psutil.Process().memory_info().rss


def _memory_info(*_: Any) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _return_freed_memory() -> None:
    """Give the system what this process has freed and keeps (flashrag.system.kept_memory), where glibc is in use.

    verl calls it when an update's weights go to the engine: they take turns with the memory, too.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _device_module() -> ModuleType:
    """`torch.cpu` completed by the calls that verl makes on a device module."""
    module = ModuleType("verl_search.cpu_device")
    vars(module).update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})
    in_use = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    vars(module).update(dict.fromkeys(in_use, _memory_in_use))
    ignored = ("ipc_collect", "reset_peak_memory_stats", "set_device", "synchronize")
    vars(module).update(dict.fromkeys(ignored, _nothing))
    vars(module).update(
        mem_get_info=_memory_info,
        empty_cache=_return_freed_memory,
        get_device_name=lambda *_: "CPU",
        current_device=lambda: "cpu",
        device_count=lambda: 1,
        is_available=lambda: True,
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
    )
    return module


class PlatformCPU(PlatformBase):
    """The whole machine as one device named "cpu"."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:  # type: ignore[override]  # torch knows CPU devices by name, not by number
        return "cpu"

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed
    empty_cache = staticmethod(_return_freed_memory)
    # There is one device, whose work is complete when its call returns, and whose allocator has no settings.
    set_device = synchronize = set_allocator_settings = staticmethod(_nothing)
    profiler_start = profiler_stop = cudart = staticmethod(_nothing)

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        del device_index
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        del msg
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {
            "VLLM_TARGET_DEVICE": "cpu",
            # By default each engine pins its threads to the first cores: two replicas would share one core.
            "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", DEFAULT_KV_CACHE_GIB),
        }
