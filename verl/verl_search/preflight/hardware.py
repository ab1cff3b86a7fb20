"""What trains on this machine: its GPUs, the stack of this environment, what compiles kernels; and the rules on them.

Found without torch. Does not cover: whether a training run fits them (machine_rules.py).
"""

import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from flashrag.preflight import Finding, MachineFacts, Rule, error, fact, note, warning
from flashrag.system.machine import VISIBLE_DEVICES, Gpu, has_nvcc, torch_cuda, visible_gpus
from verl_search.platform.kernels import flash_attn_is_installed

LEAST_DRIVERS = {"13": 580, "12": 525}  # by CUDA's major version: its own minor versions run on each of them

DRIVERS_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # the second of Windows' subsystem for Linux


class Tools(NamedTuple):
    """What compiles kernels at run time: the C compiler that Triton calls, Python's header, and nvcc."""

    compiler: bool
    python_header: bool
    nvcc: bool

    @classmethod
    def here(cls) -> "Tools":
        compilers = [name for name in (os.environ.get("CC"), "gcc", "clang") if name and shutil.which(name)]
        return cls(bool(compilers), (Path(sysconfig.get_path("include")) / "Python.h").is_file(), has_nvcc())


class HardwareFacts(MachineFacts):
    """Facts of a command that trains by a config."""

    config: DictConfig

    @fact
    def gpus(self) -> list[Gpu]:
        """Those of this machine."""
        return visible_gpus()

    @fact
    def torch_cuda(self) -> str | None:
        return torch_cuda()

    @fact
    def flash_attn(self) -> bool:
        return flash_attn_is_installed()

    @fact
    def tools(self) -> Tools:
        return Tools.here()

    @fact
    def hides_gpus(self) -> bool:
        """A driver is here without its program that tells of the GPUs, as in some containers."""
        return not shutil.which("nvidia-smi") and any(Path(device).exists() for device in DRIVERS_DEVICES)

    @fact
    def forward_compatible(self) -> bool:
        """CUDA's libraries are here that let an older driver of data-centre GPUs run a newer CUDA."""
        return any(Path("/usr/local").glob("cuda*/compat/libcuda.so*"))

    @property
    def trains_here(self) -> bool:
        """Whether GPUs of this machine train."""
        return self.config.trainer.device != "cpu"


def stack_fits(facts: HardwareFacts) -> Iterator[Finding]:
    """The stack of this environment is for the device that the config trains on."""
    device, cuda = facts.config.trainer.device, facts.torch_cuda
    if device == "cpu" and cuda:
        yield error(
            f"trainer.device=cpu trains on the CPU stack, and this environment holds the GPU one (torch "
            f"for CUDA {cuda}): take --config_name research, or make the CPU stack: scripts/setup.sh --device cpu"
        )
    elif device == "cpu" and facts.gpus:
        yield warning(
            f"this environment holds the CPU stack, so the {len(facts.gpus)} GPUs of this machine are not used; "
            "scripts/setup.sh --device gpu makes the GPU one"
        )
    elif device != "cpu" and not cuda:
        yield error(
            f"trainer.device={device} trains on GPUs, and this environment holds the CPU stack (torch without "
            "CUDA): make the GPU one, scripts/setup.sh --device gpu, or take --config_name cpu"
        )


def visible_devices() -> str:
    """What may hide GPUs from this process, in brackets; empty where nothing is set."""
    named = os.environ.get(VISIBLE_DEVICES)
    return "" if named is None else f" ({VISIBLE_DEVICES}={named})"


def no_gpu(facts: HardwareFacts, wanted: str) -> Finding:
    """What is told where nvidia-smi shows none."""
    if facts.hides_gpus:
        return warning(
            "a GPU driver is here and nvidia-smi is not, so the number, memory and driver of the GPUs are not looked "
            "at before the engines start"
        )
    return error(
        f"{wanted}, but nvidia-smi shows no GPU here{visible_devices()}: install the driver, start where there are "
        "GPUs, or make the CPU stack, which trains without: scripts/setup.sh --device cpu"
    )


def driver_is_new_enough(facts: HardwareFacts) -> Iterator[Finding]:
    if not facts.trains_here or not facts.torch_cuda:
        return
    least = LEAST_DRIVERS.get(facts.torch_cuda.partition(".")[0], 0)
    for driver in sorted({gpu.driver for gpu in facts.gpus}):
        major = driver.partition(".")[0]
        if major.isdecimal() and int(major) < least:
            told = warning if facts.forward_compatible else error
            yield told(
                f"the NVIDIA driver is {driver}; torch for CUDA {facts.torch_cuda} needs {least} or later: update the "
                "driver"
            )


def kernels_can_be_compiled(facts: HardwareFacts) -> Iterator[Finding]:
    """Triton compiles a C module for each kernel; FlashInfer's sampler is left out where there is no nvcc."""
    if not facts.trains_here:
        return
    if not facts.tools.compiler:
        yield error("no C compiler is here (CC, gcc, clang), and Triton compiles its kernels with one: install gcc")
    if not facts.tools.python_header:
        yield error(
            "Python.h is not here, and Triton compiles its kernels with it: install the headers of this Python "
            "(python3.11-dev or python3.12-dev)"
        )
    if not facts.tools.nvcc:
        yield note("no nvcc is here, so vLLM samples without FlashInfer's kernels (VLLM_USE_FLASHINFER_SAMPLER=0)")


DEVICE_RULES: Mapping[str, Rule[Any]] = {
    "machine.stack": stack_fits,
    "machine.driver": driver_is_new_enough,
    "machine.compiler": kernels_can_be_compiled,
}
