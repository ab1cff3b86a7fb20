"""GPUs, library versions and git revision of this machine. Found without torch, whose import takes many seconds."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def count_gpus() -> int:
    """NVIDIA GPUs that the driver lists; 0 where there is no driver. Does not look at CUDA_VISIBLE_DEVICES."""
    listed = _output("nvidia-smi", "-L") or ""
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def gpu_memory_bytes() -> list[int]:
    """The memory of each GPU that the driver lists."""
    listed = _output("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits") or ""
    return [int(line) * 2**20 for line in listed.splitlines() if line.strip().isdecimal()]


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of the given distributions; those that are not installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # faiss-cpu and faiss-gpu, for example, exclude each other
            continue
    return found


def versions_in_words(names: Iterable[str]) -> str:
    """The versions of the given distributions in one line, those that are not installed left out."""
    return ", ".join(f"{name} {number}" for name, number in library_versions(names).items())


def describe_environment(repository: Path, packages: Iterable[str]) -> dict[str, Any]:
    """Facts for repeating a run: versions, revision, machine. Nothing secret, no environment variables.

    `git` is None outside a checkout or without git; `dirty` says whether tracked files differ from the revision.
    """
    git = ("git", "-C", str(repository))
    revision = _output(*git, "rev-parse", "HEAD")
    changes = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return {
        "python": sys.version.split()[0],
        "packages": library_versions(packages),
        "git": None if revision is None else {"revision": revision, "dirty": bool(changes)},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cpu_count": os.cpu_count(),
        },
    }


def _output(*command: str) -> str | None:
    """The standard output of a command; None where it is not installed, fails, or takes longer than 30 s."""
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
