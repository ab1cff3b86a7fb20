"""GPUs, processor, library versions and git revision of this machine. Found without torch, whose import is slow."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, NamedTuple

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
WAIT_POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
MIG = "MIG-"  # begins the name of a slice of a GPU, which the driver lists under its GPU only


class Gpu(NamedTuple):
    """A GPU of the driver's list. The memory is None where the driver does not tell it, as for a slice of a GPU."""

    memory_bytes: int | None
    free_bytes: int | None
    driver: str


def waiting_threads() -> dict[str, str]:
    """Variables for processes that take turns on the same cores: an OpenMP thread with nothing to do soon sleeps.

    It first spins for some tenths of a millisecond, longer than the gap between two operations of a model: to wake it
    each time made a vLLM engine a quarter slower. A wait policy that is set stays, whatever it is.
    """
    if os.environ.get(WAIT_POLICY):
        return {}
    return {WAIT_POLICY: "PASSIVE", SPIN_COUNT: os.environ.get(SPIN_COUNT) or "20000"}


def kept_memory() -> dict[str, str]:
    """Variables for processes that compute on a CPU: glibc keeps the memory that one operation frees for the next.

    Otherwise it gives each large block back to the kernel, which fills the next one with zeros: a tenth of the time of
    an evaluation of SmolLM2. A process then holds what it needed at most, until it calls malloc_trim. No variables
    if one of them is set.
    """
    return {} if any(map(os.environ.get, ALLOCATOR)) else dict(ALLOCATOR)


def visible_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that CUDA shows to this process: of those that the driver lists, what CUDA_VISIBLE_DEVICES names.

    As for CUDA, a name that is none ends the list. No GPUs where there is no driver.
    """
    query = "--query-gpu=index,uuid,memory.total,memory.free,driver_version"
    listed = _output("nvidia-smi", query, "--format=csv,noheader,nounits") or ""
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines()]
    gpus = {(row[0], row[1]): Gpu(_mebibytes(row[2]), _mebibytes(row[3]), row[4]) for row in rows if len(row) == 5}
    if (named := os.environ.get(VISIBLE_DEVICES)) is None or not gpus:
        return [*gpus.values()]
    found = []
    for name in map(str.strip, named.split(",")):
        matching = [gpu for (index, uuid), gpu in gpus.items() if name == index or (name and uuid.startswith(name))]
        if name.startswith(MIG):
            matching = [Gpu(None, None, next(iter(gpus.values())).driver)]
        if not matching:
            break
        found.append(matching[0])
    return found


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdecimal() else None


def count_gpus() -> int:
    """The GPUs that CUDA shows to this process."""
    return len(visible_gpus())


def gpu_memory_bytes() -> list[int]:
    """The memory of each of them whose driver tells it."""
    return [gpu.memory_bytes for gpu in visible_gpus() if gpu.memory_bytes is not None]


def torch_cuda() -> str | None:
    """The version of CUDA that the installed torch was built for; None for a build for CPUs, and without torch."""
    with suppress(PackageNotFoundError, OSError):
        built = Path(str(distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
        found = re.search(r"^cuda\b.*= '([\d.]+)'", built, re.MULTILINE)
        return found and found[1]
    return None


def has_nvcc() -> bool:
    """Whether CUDA's compiler is where the libraries that compile kernels at run time look for it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") is not None or os.access(Path(home) / "bin" / "nvcc", os.X_OK)


def computes_in_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16: AVX512-BF16 or AMX of x86, BF16 of Arm.

    False where the system does not tell, as outside Linux.
    """
    with suppress(OSError):
        listed = re.search(r"^(?:flags|Features)\b.*", CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
        return listed is not None and not BFLOAT16_FLAGS.isdisjoint(listed[0].split())
    return False


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
