"""Each rule about the machine of a run, over GPUs, drivers and compilers that are given by hand."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashrag.preflight import Severity, examine
from flashrag.system.machine import Gpu
from tests.flashrag.preflight.test_machine import GOOD
from tests.verl_search.composing import composed
from tests.verl_search.preflight.test_memory import QWEN
from tests.verl_search.preflight.test_rules import MODEL, told
from verl_search.platform.ray_cluster import RayChoice
from verl_search.preflight import machine_rules
from verl_search.preflight.facts import TrainingFacts
from verl_search.preflight.hardware import Tools, stack_fits
from verl_search.preflight.machine_rules import HARDWARE_RULES

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
GIB = 2**30
H100 = Gpu(80 * GIB, 79 * GIB, "580.65.06")
OWN, JOINED = RayChoice("local"), RayChoice("10.0.0.1:6379", "RAY_ADDRESS")
ALL_TOOLS = Tools(compiler=True, python_header=True, nvcc=True)
# 8 GPUs with all that the published run needs.
GPU_MACHINE: dict[str, Any] = {
    "gpus": [H100] * 8,
    "torch_cuda": "13.0",
    "flash_attn": True,
    "tools": ALL_TOOLS,
    "ray": OWN,
    "machine": replace(GOOD, cores=64, memory_bytes=1000 * GIB),
    "model": QWEN["7B"],
}


def on_gpus(rule: str, *overrides: str, **facts: Any) -> list[tuple[Severity, str]]:
    """The findings of a rule for the published config."""
    return told(HARDWARE_RULES[rule], *overrides, config_name="research", **{**GPU_MACHINE, **facts})


def test_nothing_is_said_about_a_machine_that_the_published_run_is_for() -> None:
    for rule in HARDWARE_RULES:
        assert on_gpus(rule) == [], rule


@pytest.mark.parametrize(
    ("config_name", "facts", "severity", "words"),
    [
        ("cpu", {"torch_cuda": "13.0"}, Severity.ERROR, "holds the GPU one (torch for CUDA 13.0): take --config_name"),
        ("cpu", {"gpus": [H100] * 4}, Severity.WARNING, "holds the CPU stack, so the 4 GPUs of this machine are not"),
        (
            "research",
            {},
            Severity.ERROR,
            "holds the CPU stack (torch without CUDA): make the GPU one, scripts/setup.sh",
        ),
    ],
)
def test_the_stack_is_that_of_the_device(config_name: str, facts: Any, severity: Severity, words: str) -> None:
    given = {"torch_cuda": None, "gpus": [], **facts}
    ((found, message),) = told(stack_fits, config_name=config_name, **given)
    assert found is severity
    assert words in message
    assert told(stack_fits, config_name="cpu", torch_cuda=None, gpus=[]) == []


@pytest.mark.parametrize(
    ("there", "parallel", "remedy"),
    [
        (4, 2, "this machine shows 4 GPUs; give --n_gpus_per_node 4"),
        (1, 2, f"this machine shows 1 GPUs; give --n_gpus_per_node 1 {ROLLOUT}.tensor_model_parallel_size=1"),
        (6, 4, f"this machine shows 6 GPUs; give --n_gpus_per_node 6 {ROLLOUT}.tensor_model_parallel_size=3"),
        (0, 2, "nvidia-smi shows no GPU here: install the driver, start where there are GPUs, or make the CPU stack"),
    ],
)
def test_gpus_that_are_not_there(there: int, parallel: int, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = f"{ROLLOUT}.tensor_model_parallel_size={parallel}"
    ((severity, message),) = on_gpus("machine.gpus", settings, gpus=[H100] * there)
    assert severity is Severity.ERROR
    assert message.startswith(f"trainer.n_gpus_per_node=8, but {remedy}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    ((_, message),) = on_gpus("machine.gpus", settings, gpus=[H100] * there)
    assert "(CUDA_VISIBLE_DEVICES=0,1)" in message
    assert on_gpus("machine.gpus", gpus=[H100] * there, ray=JOINED) == [], "the cluster's nodes are asked"


def test_gpus_that_nvidia_smi_cannot_tell_of_are_not_looked_at() -> None:
    ((severity, message),) = on_gpus("machine.gpus", gpus=[], hides_gpus=True)
    assert severity is Severity.WARNING
    assert "a GPU driver is here and nvidia-smi is not" in message


def test_the_head_of_a_cluster_needs_no_gpu_driver_or_compiler() -> None:
    bare = {"gpus": [], "ray": JOINED, "tools": Tools(False, False, False), "machine": GOOD}
    for rule in ("machine.gpus", "machine.driver", "machine.compiler", "machine.gpu-memory", "machine.memory"):
        assert on_gpus(rule, **bare) == [], rule


@pytest.mark.parametrize(
    ("cuda", "driver", "least"),
    [("13.0", "570.133.20", 580), ("13.0", "580.65.06", None), ("12.8", "470.82", 525), ("12.8", "535.54", None)],
)
def test_a_driver_that_is_too_old(cuda: str, driver: str, least: int | None) -> None:
    given: dict[str, Any] = {"torch_cuda": cuda, "gpus": [H100, H100._replace(driver=driver)]}
    expected = f"the NVIDIA driver is {driver}; torch for CUDA {cuda} needs {least} or later: update the driver"
    for libraries, severity in ((False, Severity.ERROR), (True, Severity.WARNING)):
        found = on_gpus("machine.driver", forward_compatible=libraries, **given)
        assert found == ([] if least is None else [(severity, expected)])


@pytest.mark.parametrize(
    ("tools", "severity", "words"),
    [
        (ALL_TOOLS._replace(compiler=False), Severity.ERROR, "no C compiler is here (CC, gcc, clang)"),
        (ALL_TOOLS._replace(python_header=False), Severity.ERROR, "Python.h is not here"),
        (ALL_TOOLS._replace(nvcc=False), Severity.NOTE, "no nvcc is here, so vLLM samples without FlashInfer's"),
    ],
)
def test_what_compiles_kernels(tools: Tools, severity: Severity, words: str) -> None:
    ((found, message),) = on_gpus("machine.compiler", tools=tools)
    assert found is severity
    assert message.startswith(words)


def test_the_tools_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert Tools.here() == (False, False, False)
    for name in ("gcc", "nvcc", "Python.h"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    assert Tools.here() == (True, True, True)


@pytest.mark.parametrize(
    ("overrides", "severity", "words"),
    [
        ([], Severity.NOTE, "training computes with the attention sdpa and verl's fused kernels"),
        (
            ["actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2"],
            Severity.ERROR,
            "attn_implementation=flash_attention_2, but flash-attn is not installed; leave it at null, for sdpa",
        ),
        (
            ["actor_rollout_ref.model.use_fused_kernels=false"],
            Severity.WARNING,
            "computes log-probabilities row by row, and keeps all logits in float32; leave it at null",
        ),
    ],
)
def test_without_flash_attn(overrides: list[str], severity: Severity, words: str) -> None:
    ((found, message),) = on_gpus("model.attention", *overrides, flash_attn=False)
    assert found is severity
    assert words in message
    assert on_gpus("model.attention", *overrides) == []


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], f"{ACTOR}.ulysses_sequence_parallel_size"),
        ([], f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size"),
        (["algorithm.adv_estimator=gae"], "critic.fsdp.ulysses_sequence_parallel_size"),
    ],
)
def test_a_sequence_is_divided_inside_flash_attention_only(overrides: list[str], key: str) -> None:
    given = [*overrides, f"{key}=2"]
    assert on_gpus("model.sequence-parallel", *given) == []
    assert on_gpus("model.sequence-parallel", *overrides, flash_attn=False) == []
    ((severity, message),) = on_gpus("model.sequence-parallel", *given, flash_attn=False)
    assert severity is Severity.ERROR
    named = key.replace(".fsdp_config", "")
    assert message.startswith(f"{named}=2 divides each sequence among GPUs, which verl does inside flash attention")


# 8 GPUs: 24 processors for the training processes, 2 for the queue's storage, 4 for what stands beside.
@pytest.mark.parametrize(
    ("given", "cores", "severity", "words"),
    [
        (
            29,
            64,
            Severity.ERROR,
            "num_cpus=29, but 8 training processes, the queue and the engines reserve 30, and Ray",
        ),
        (30, 64, None, ""),
        ("null", 15, Severity.WARNING, "this machine has 15 cores for 8 GPUs; expected at least 16"),
        ("null", 16, None, ""),
    ],
)
def test_processors(given: object, cores: int, severity: Severity | None, words: str) -> None:
    machine = replace(GOOD, cores=cores, memory_bytes=1000 * GIB)
    found = on_gpus("machine.processors", f"ray_kwargs.ray_init.num_cpus={given}", machine=machine)
    assert [finding for finding, _ in found] == ([severity] if severity else [])
    assert words in "".join(message for _, message in found)
    assert on_gpus("machine.processors", machine=machine, ray=JOINED) == [], "the cluster is asked"


def test_memory_of_a_gpu_on_paper_and_in_use() -> None:
    one = ["trainer.n_gpus_per_node=1", f"{ROLLOUT}.tensor_model_parallel_size=1"]
    ((severity, message),) = on_gpus("machine.gpu-memory", *one, gpus=[H100], model=QWEN["3B"])
    assert severity is Severity.WARNING
    # 3.09 billion parameters of 12 bytes, 48 GiB of the engine, 2 GiB beside; of 16 bytes, and 17,408 tokens.
    assert message == (
        "on paper a GPU needs 84.5 GiB in rollouts and 76.0 GiB in updates, and has 80.0 GiB; what would fit: "
        f"{ROLLOUT}.gpu_memory_utilization=0.45"
    )
    small = H100._replace(memory_bytes=12 * GIB, free_bytes=12 * GIB)
    ((_, message),) = on_gpus("machine.gpu-memory", *one, gpus=[small])
    assert message.endswith(", and the engine keeps 0 tokens of an episode's 8,704; what would fit: a smaller model")
    used = H100._replace(free_bytes=40 * GIB)
    ((severity, message),) = on_gpus("machine.gpu-memory", gpus=[*[H100] * 7, used])
    assert severity is Severity.ERROR
    assert message.startswith(
        f"a GPU has 40.0 GiB of 80.0 GiB free, and {ROLLOUT}.gpu_memory_utilization=0.6 takes 48.0 GiB of it"
    )
    assert on_gpus("machine.gpu-memory", gpus=[used] * 8, ray=JOINED) == [], "Ray may choose others"
    assert on_gpus("machine.gpu-memory", *one, gpus=[Gpu(None, None, "580.1")]) == [], "a driver that does not tell it"
    assert on_gpus("machine.gpu-memory", *one, gpus=[H100], model=None) == [], "a model of the hub"
    ((severity, _),) = on_gpus("machine.gpu-memory", *one, gpus=[used], model=None)
    assert severity is Severity.ERROR


@pytest.mark.parametrize("key", [f"{ROLLOUT}.gpu_memory_utilization", f"{ACTOR}.fsdp_config.fsdp_size"])
def test_a_null_is_left_to_the_rules_on_settings(key: str) -> None:
    small = Gpu(12 * GIB, 12 * GIB, "580.1")
    for rule in HARDWARE_RULES:
        assert all(message for _, message in on_gpus(rule, f"{key}=null", gpus=[small] * 8)), rule


def test_memory_of_the_machine() -> None:
    # 7.6 billion parameters of 4 bytes: loaded once, and the reference's.
    ((severity, message),) = on_gpus("machine.memory", machine=replace(GOOD, memory_bytes=50 * GIB))
    assert severity is Severity.WARNING
    assert message.startswith("training needs at least 56.7 GiB of memory on paper, this machine has 50.0 GiB")
    assert message.endswith("or offload less (actor_rollout_ref.actor.fsdp_config)")
    on_a_cpu = partial(told, machine_rules.host_memory_is_enough, gpus=[], ray=OWN, model=MODEL)
    assert on_a_cpu() == []
    ((severity, message),) = on_a_cpu(machine=replace(GOOD, memory_bytes=2**26))
    assert severity is Severity.WARNING
    assert "at least 6.6 GiB of memory on paper, this machine has 64 MiB" in message
    assert message.endswith("or lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu")


def test_sglang_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(machine_rules, "find_spec", asked.append)
    ((severity, message),) = on_gpus("config.engine", f"{ROLLOUT}.name=sglang")
    assert (severity, asked) == (Severity.ERROR, ["sglang"])
    assert "SGLang is not installed beside verl" in message
    monkeypatch.setattr(machine_rules, "find_spec", lambda name: name)
    assert on_gpus("config.engine", f"{ROLLOUT}.name=sglang") == []


def test_the_rules_read_this_machine() -> None:
    """Every fact is gathered here; which findings there are depends on the machine."""
    facts = TrainingFacts(composed("research", "trainer.default_local_dir=/tmp/none"))
    facts.__dict__["_gathered"] = {"model": QWEN["0.5B"]}
    assert all(finding.message for finding in examine(HARDWARE_RULES, facts))
    assert {"gpus", "torch_cuda", "flash_attn", "ray", "machine"} <= facts.__dict__["_gathered"].keys()
