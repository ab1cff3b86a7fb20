"""The plugin is loaded by verl itself, and its absence is reported as exactly that."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import verl

from tests.nodes import PATIENCE
from verl_search.platform.cpu import is_for_this_process
from verl_search.platform.upstream import PLUGIN_MODULE, PluginNotLoaded, check_plugin_loaded

SOURCES = ("vllm_rollout.py", "vllm_async_server.py", "utils.py")


def test_importing_verl_loads_the_plugin_and_registers_the_cpu_platform() -> None:
    check_plugin_loaded()
    from verl.plugin.platform.platform_manager import PlatformRegistry

    assert "cpu" in PlatformRegistry.registered_names()


@pytest.mark.parametrize(
    ("variable", "cuda", "hip", "expected"),
    [
        (None, None, None, True),  # the CPU stack
        (None, "13.0", None, False),  # the GPU stack, also on a head node without a GPU or without nvidia-smi
        (None, None, "7.1", False),
        ("cpu", "13.0", None, True),
        (" CPU ", "13.0", None, True),
        ("nvidia", "13.0", None, False),
    ],
)
def test_the_cpu_platform_stands_aside_where_torch_knows_an_accelerator(
    variable: str | None, cuda: str | None, hip: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    if variable is not None:
        monkeypatch.setenv("VERL_PLATFORM", variable)
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.version.hip", hip)
    assert is_for_this_process() is expected


def test_without_it_verl_falls_back_to_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the head of a cluster: the GPU stack, no GPU, no nvidia-smi."""
    check_plugin_loaded()
    from verl.plugin.platform import platform_manager

    from verl_search.plugin import register

    others = {name: cls for name, cls in platform_manager.PlatformRegistry._platforms.items() if name != "cpu"}
    monkeypatch.setattr(platform_manager.PlatformRegistry, "_platforms", others)
    monkeypatch.setattr(platform_manager, "_current_platform", None)
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setenv("PATH", "/nowhere")
    register()
    assert platform_manager.get_platform().device_name == "cuda"


def test_a_plugin_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = importlib.metadata.EntryPoints([])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: nothing)
    monkeypatch.delitem(sys.modules, PLUGIN_MODULE, raising=False)
    with pytest.raises(PluginNotLoaded, match="pip install -e verl"):
        check_plugin_loaded()


@pytest.mark.slow
def test_a_plugin_that_verl_was_told_to_ignore_is_named() -> None:
    code = "from verl_search.platform.upstream import check_plugin_loaded; check_plugin_loaded()"
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "VERL_USE_EXTERNAL_PLUGINS='none' must be unset or name it" in done.stderr


RAY_OF_ITS_OWN = """
import ray

@ray.remote
def of_a_worker():
    import verl
    return ray.get_runtime_context().get_job_id()

import verl
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().get_job_id(), ray.get(of_a_worker.remote()))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_jobs_of_two_rays_on_a_machine_are_told_apart() -> None:
    """In all processes alike. Both are the first job of their Ray, and both may hand over weights at once."""
    command = [sys.executable, "-W", "ignore", "-c", RAY_OF_ITS_OWN]
    environment = {**os.environ, **PATIENCE}
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (one, of_worker), (other, of_others_worker) = [run.communicate()[0].split()[-2:] for run in runs]
    assert (one, other) == (of_worker, of_others_worker)
    assert one != other
    assert max(len(f"/tmp/rl-colocate-zmq-{job}-replica-100-rank-100.sock") for job in (one, other)) <= 107


def test_verl_names_the_socket_for_an_engines_weights_after_the_job() -> None:
    """The process that trains and the engine's name the same socket."""
    folder = Path(verl.__file__).parent / "workers" / "rollout" / "vllm_rollout"
    trains, serves, computes = ((folder / name).read_text(encoding="utf-8") for name in SOURCES)
    assert "job_id = ray.get_runtime_context().get_job_id()" in trains
    assert 'os.environ["VERL_RAY_JOB_ID"] = ray.get_runtime_context().get_job_id()' in serves
    assert 'job_id = os.environ.get("VERL_RAY_JOB_ID", "0")' in computes
    assert all('f"ipc:///tmp/rl-colocate-zmq-{job_id}-replica-{' in source for source in (trains, computes))
