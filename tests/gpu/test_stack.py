"""The GPU training stack, on a machine without a GPU: `scripts/test.sh --gpu-stack` runs this in .venv-gpu.

What is installed belongs together, every module of ours imports, the actor loads as it is configured, and verl's FSDP2
engine finds the same numbers with and without padding, on a processor. What needs a device is in test_smoke.py.
"""

import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from flashrag.system.local_server import LOOPBACK, free_port
from tests.verl_search.composing import composed
from verl_search.main_ppo import complete

pytestmark = [
    pytest.mark.gpu_stack,
    pytest.mark.skipif(torch.version.cuda is None, reason="this is the CPU stack; run scripts/test.sh --gpu-stack"),
]
REPOSITORY = Path(__file__).parents[2]
BASE_MODEL = REPOSITORY / "training" / "demo" / "base_model"
PACKAGES = ("flashrag", "verl_search", "rag_serving", "training", "evaluation", "scripts")
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
import verl  # first, as in each process of a run: it loads our plugin
failed = {}
for package in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failed[module.name] = repr(error)
print(json.dumps(failed))
"""
# What is mapped into a process that computes and searches, and a library that torch opens by name when it compiles.
ONE_CUDA = """
import ctypes, json, re, warnings
warnings.simplefilter("ignore")
import torch, faiss, sentence_transformers, vllm
ctypes.CDLL("libnvrtc.so.13")
maps = open("/proc/self/maps", encoding="utf-8").read()
print(json.dumps(sorted(set(re.findall(r"site-packages/nvidia/([^/\\n]+)/", maps)))))
"""


def printed_by(program: str, *arguments: str) -> Any:
    """The last line of a Python program, as JSON."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
def test_every_module_imports() -> None:
    assert printed_by(IMPORT_EVERYTHING, *PACKAGES) == {}


def test_torch_finds_the_libraries_of_its_own_cuda() -> None:
    folders = printed_by(ONE_CUDA)
    assert "cu13" in folders
    # By these names CUDA 12's wheels go, such as faiss-gpu's, which torch would take for its own.
    assert set(folders) & {"cublas", "cuda_nvrtc", "cuda_runtime", "curand"} == set()


def make_model(folder: Path, kind: str) -> Path:
    """Random weights, large enough that the probabilities of tokens differ, over the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 512}
    config = CONFIGS[kind](**heads, **sizes, initializer_range=0.2, tie_word_embeddings=kind == "llama")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_actor_loads_with_the_attention_that_is_configured(kind: str, tmp_path: Path) -> None:
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.model import get_hf_auto_model_class

    config = composed("research", f"actor_rollout_ref.model.path={make_model(tmp_path, kind)}")
    complete(config)
    model_config = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    # As verl's engine does (workers/engine/fsdp/transformer_impl.py, _build_module).
    auto_class = get_hf_auto_model_class(hf_config=model_config.hf_config)
    model = auto_class.from_pretrained(model_config.local_path, config=model_config.hf_config, dtype=torch.float32)
    assert model.config._attn_implementation == "sdpa"  # flash-attn has no wheel on the package index
    # Without flash-attn's cross-entropy verl goes over the tokens one by one, unless the kernels are fused.
    assert model_config.use_fused_kernels
    assert model_config.use_remove_padding


class Found(NamedTuple):
    """What an update computes: of each trained token, and the gradient of all weights in one row."""

    log_probs: torch.Tensor
    entropies: torch.Tensor
    gradient: torch.Tensor
    micro_batches: int


def sequences() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids of several lengths, each with 1 for the trained ones: about half, never the first."""
    draws = torch.Generator().manual_seed(5)
    lengths = (40, 7, 65, 2, 33)
    ids = [torch.randint(10, 200, (length,), generator=draws) for length in lengths]
    masks = [torch.randint(0, 2, (length,), generator=draws) for length in lengths]
    for mask in masks:
        mask[0], mask[-1] = 0, 1
    return list(zip(ids, masks, strict=True))


def update(model: Path, *, padded: bool, fused: bool) -> Found:
    """One update by verl's own engine, not by our CPU one; the gradients of its micro-batches are summed."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR=LOOPBACK, MASTER_PORT=str(free_port()))
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig

    import verl_search.platform.fused_head  # noqa: F401  # as config/research.yaml has it

    settings = {"path": model, "use_remove_padding": not padded, "use_fused_kernels": fused}
    config = composed("cpu", *(f"actor_rollout_ref.model.{key}={value}" for key, value in settings.items()))
    complete(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    parts = {"engine_config": actor.engine, "optimizer_config": actor.optim, "checkpoint_config": actor.checkpoint}
    model_config = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    worker = TrainingWorker(
        config=TrainingWorkerConfig(
            model_type="language_model", model_config=model_config, profiler_config=None, **parts
        )
    )
    worker.engine.__class__ = FSDPEngineWithLMHead
    worker.reset()
    jagged = partial(torch.nested.as_nested_tensor, layout=torch.jagged)
    batch = sequences()
    data = tu.get_tensordict(
        {
            "input_ids": jagged([ids for ids, _ in batch]),
            "position_ids": jagged([torch.arange(len(ids)) for ids, _ in batch]),
            "loss_mask": jagged([mask for _, mask in batch]),
        },
        {
            "use_remove_padding": not padded,
            "use_fused_kernels": fused,
            "use_dynamic_bsz": True,
            "max_token_len_per_gpu": 80,
            "temperature": 0.7,
            "pad_mode": "no_padding",
            "pad_token_id": 0,
            "calculate_entropy": True,
            "return_model_output": True,
            "global_batch_size": len(batch),
        },
    )
    n_trained = sum(int(mask.sum()) for _, mask in batch)
    micro_batches = []

    def loss(model_output: Any, data: Any, dp_group: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        del dp_group
        micro_batches.append(len(data["input_ids"].offsets()) - 1)
        trained = data["loss_mask"].values().roll(-1)  # a position's output is of the next token
        return (model_output["log_probs"].values() * trained).sum() / n_trained, {}

    with worker.engine.train_mode():
        output = worker.engine.forward_backward_batch(data, loss)["model_output"]
        # DTensors, of which the one process has the whole.
        gradients = [weights.grad.full_tensor().flatten() for weights in worker.engine.module.parameters()]
    trained = data["loss_mask"].values().roll(-1).bool()
    log_probs, entropies = (output[name].values()[trained] for name in ("log_probs", "entropy"))
    return Found(log_probs, entropies, torch.cat(gradients), len(micro_batches))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.timeout(300)
def test_without_padding_verls_engine_finds_the_numbers_of_the_padded_batch(
    kind: str, fused: bool, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # verl's and torch's own
        model = make_model(tmp_path, kind)
        expected = update(model, padded=True, fused=False)
        found = update(model, padded=False, fused=fused)
    assert found.micro_batches > 1
    assert expected.gradient.abs().max() > 1e-2
    assert expected.log_probs.std() > 0.1
    for name in ("log_probs", "entropies", "gradient"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-5)
