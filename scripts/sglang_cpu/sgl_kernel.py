"""Stands in for sgl_kernel, which is on PyPI for CUDA only: the names that SGLang imports when it starts on a CPU.

SGLang calls them for mixtures of experts, and on processors with AMX if their real builds are there.
"""

from collections.abc import Callable
from typing import NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if not name.endswith("_cpu"):
        raise AttributeError(
            f"sgl_kernel.{name} is not there: scripts/setup.sh --sglang --device cpu installs no kernels"
        )

    def absent(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(
            f"SGLang called sgl_kernel.{name}, which has no build for CPUs on PyPI; serve this model with vLLM: "
            "scripts/serve_model.sh --engine vllm"
        )

    return absent
