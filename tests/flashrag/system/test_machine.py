"""Facts about the machine, each from a real program or a small stand-in for one that is not here."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from flashrag.system import machine
from flashrag.system.machine import (
    Gpu,
    count_gpus,
    describe_environment,
    gpu_memory_bytes,
    has_nvcc,
    kept_memory,
    library_versions,
    torch_cuda,
    visible_gpus,
    waiting_threads,
)


def test_versions_name_what_is_installed() -> None:
    assert library_versions(("numpy", "no-such-distribution")) == {"numpy": version("numpy")}


H100, SMALL = Gpu(81559 * 2**20, 81000 * 2**20, "580.65.06"), Gpu(40960 * 2**20, 20 * 2**20, "580.65.06")
TWO = """echo '0, GPU-aaaa, 81559, 81000, 580.65.06'; echo '1, GPU-bbbb, 40960, 20, 580.65.06'"""


def driver(folder: Path, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        (TWO, [H100, SMALL]),
        ("echo '0, GPU-aaaa, [N/A], [N/A], 580.95'", [Gpu(None, None, "580.95")]),  # memory that the processor has, too
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9", []),
        ("echo 'No devices were found'", []),
        (None, []),
    ],
    ids=["two GPUs", "shared memory", "no driver", "no GPU", "no program"],
)
def test_the_gpus_of_the_driver_are_listed(
    script: str | None, gpus: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        driver(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == gpus
    assert count_gpus() == len(gpus)
    assert gpu_memory_bytes() == [gpu.memory_bytes for gpu in gpus if gpu.memory_bytes]


@pytest.mark.parametrize(
    ("named", "gpus"),
    [
        ("0,1", [H100, SMALL]),
        ("1, 0", [SMALL, H100]),
        ("GPU-bb", [SMALL]),
        ("", []),
        ("-1", []),
        ("1,7,0", [SMALL]),  # CUDA ends at a name that is none
        ("MIG-1c", [Gpu(None, None, "580.65.06")]),
    ],
)
def test_cuda_s_own_variable_hides_gpus(
    named: str, gpus: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, TWO)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(
    ("line", "cuda"),
    [("cuda: Optional[str] = '13.0'", "13.0"), ("cuda: Optional[str] = None", None), ("cuda = '12.8'", "12.8")],
)
def test_what_torch_was_built_for_is_read_from_its_files(
    line: str, cuda: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch-1.dist-info").mkdir()
    (tmp_path / "torch-1.dist-info" / "METADATA").write_text("Name: torch\nVersion: 1\n")
    assert torch_cuda() == torch.version.cuda
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert torch_cuda() is None, "a torch without its files"
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '1'\n{line}\nhip: Optional[str] = None\n")
    assert torch_cuda() == cuda


def test_nvcc_is_looked_for_where_libraries_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert not has_nvcc()
    (tmp_path / "bin").mkdir()
    driver(tmp_path / "bin", "exit 0")
    (tmp_path / "bin" / "nvidia-smi").rename(tmp_path / "bin" / "nvcc")
    assert has_nvcc()


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\nbugs\t: none\n", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\nvmx flags\t: avx512_bf16\n", False),
        ("", False),
        (None, False),
    ],
)
def test_a_processor_s_flags_say_whether_it_computes_in_bfloat16(
    cpuinfo: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(machine, "CPUINFO", path)
    assert machine.computes_in_bfloat16() is expected


def test_a_checkout_is_described_by_its_revision_and_whether_it_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert describe_environment(tmp_path, ())["git"] is None
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "first")
    revision = git("rev-parse", "HEAD")
    assert describe_environment(tmp_path, ())["git"] == {"revision": revision, "dirty": False}
    (tmp_path / "another").write_text("not tracked")
    assert describe_environment(tmp_path, ())["git"] == {"revision": revision, "dirty": False}
    (tmp_path / "file").write_text("b")
    assert describe_environment(tmp_path, ())["git"] == {"revision": revision, "dirty": True}


def test_waiting_threads_spin_a_moment_and_sleep_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert waiting_threads() == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert waiting_threads() == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert waiting_threads() == {}


def test_freed_memory_is_kept_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert kept_memory() == {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    for name in names:
        monkeypatch.setenv(name, "65536")
        assert kept_memory() == {}
        monkeypatch.delenv(name)


def test_glibc_keeps_a_large_block_for_the_next() -> None:
    """Pages that the second block of 256 MiB faults in, without the variables and with them."""
    script = (
        "import resource\n"
        "block = bytearray(2**28); del block\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "block = b'x' * 2**28\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )

    def faults(**variables: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", script]
        return int(subprocess.run(command, env=environment | variables, capture_output=True, check=True).stdout)

    assert faults(**kept_memory()) * 20 < faults()
