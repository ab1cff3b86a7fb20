"""The memory that a training run takes on paper: of a GPU in both halves of a step, and of the machine.

On GPUs, by how verl 0.9.1 runs FSDP2 (workers/engine/fsdp): weights, gradients and Adam's moments are spread over all
training processes; layers are gathered in bfloat16 when they compute; the reference policy, and what is offloaded, lies
in the machine's memory; while answers are sampled, the engine has its share of the GPU and the gradients are gone.
Without an accelerator all of it lies in the machine's memory, with the libraries of the processes.

Weights, gradients and moments are exact for full training, activations and logits are estimates for transformers with
gated layers. Not counted: LoRA's adapters, the masks of attention, what the allocator keeps, the episodes themselves;
docs/checks.md says how much that is on a CPU. Disk: sizes.py.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from flashrag.generator import ModelFacts
from verl_search.platform.kernels import chosen_kernels
from verl_search.preflight.sizes import ADAM_BYTES, BYTES, has_critic, sequence_tokens, token_budget, weight_bytes

FIXED_BYTES = 2 * 2**30  # of a GPU: the contexts of CUDA and NCCL, and what a sleeping engine keeps
ENGINE_BYTES = 2 * 2**30  # of an engine's share: activations of a prefill, CUDA graphs
USABLE = 0.95  # of a GPU's memory: the allocator's blocks leave gaps
COMPUTE_BYTES = 2  # bfloat16
CPU_PROCESSES_BYTES = 11 * 2**29  # the libraries of Ray's and verl's ten processes: 5.9 GB with SmolLM2-135M
CPU_CACHE_BYTES = 2**30  # of an engine: DEFAULT_KV_CACHE_GIB (platform/cpu.py), whose import takes seconds
LOGIT_BYTES = 4 + 4  # in float32, and once more for their gradient
FUSED_TOKENS, FUSED_COPIES = 512, 2  # verl's fused kernels: logits of so many tokens at a time, in so many copies more
ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model"))
UTILIZATION, STEP, LEAST_UTILIZATION = f"{ROLLOUT}.gpu_memory_utilization", 0.05, 0.2
GPU_COUNTS = (2, 4, 8, 16, 32, 64)


class Memory(NamedTuple):
    """Bytes by purpose: of one GPU while answers are sampled and while weights are updated, and of one machine."""

    rollout: Mapping[str, int]
    update: Mapping[str, int]
    host: Mapping[str, int]
    cache_tokens: int | None  # how many tokens' keys and values an engine keeps; None where it is not told


def training_memory(
    model: ModelFacts, config: DictConfig, gpu_bytes: int | None = None, flash_attn: bool = False
) -> Memory | None:
    """None where the number of parameters is unknown. Without `gpu_bytes` the engine's share of a GPU is left out."""
    if model.parameters is None:
        return None
    if config.trainer.device == "cpu":
        return Memory({}, {}, _on_a_cpu(model, model.parameters, config), None)
    fsdp, processes = config.actor_rollout_ref.actor.fsdp_config, config.trainer.nnodes * config.trainer.n_gpus_per_node
    share = model.parameters // (processes if (fsdp.fsdp_size or -1) < 1 else fsdp.fsdp_size)
    trained = 0 if config.actor_rollout_ref.model.lora_rank else share
    weight, policy = weight_bytes(config), fsdp.offload_policy
    states = {"weights": share * weight, "optimizer": trained * ADAM_BYTES, "gradients": trained * weight}
    away = {"weights": policy or fsdp.param_offload, "optimizer": policy or fsdp.optimizer_offload, "gradients": policy}
    between_updates = {name: states[name] for name in ("weights", "optimizer") if not away[name]}
    engine = {} if gpu_bytes is None else {"engine": engine_bytes(config, gpu_bytes)}
    computing = _computing(model, model.parameters, config, flash_attn)
    critic, critic_away = _critic(config, share)
    offloaded = sum(size for name, size in states.items() if away[name]) + sum(critic_away.values())
    between_updates, states = between_updates | critic, states | critic
    return Memory(
        rollout={**between_updates, **engine, "CUDA": FIXED_BYTES},
        update={**(critic if policy else states), **computing, "CUDA": FIXED_BYTES},
        host=_of_a_machine(model, model.parameters, config, offloaded, share),
        cache_tokens=None if gpu_bytes is None else _cache_tokens(model, model.parameters, config, gpu_bytes),
    )


def engine_bytes(config: DictConfig, gpu_bytes: int) -> int:
    """The engine's share of a GPU; 0 where the config gives none, which a rule on settings refuses."""
    return int((config.actor_rollout_ref.rollout.gpu_memory_utilization or 0) * gpu_bytes)


def has_reference(config: DictConfig) -> bool:
    """With LoRA the reference is the model without its adapters."""
    compares = config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward
    return bool(compares) and not config.actor_rollout_ref.model.lora_rank


def _on_a_cpu(model: ModelFacts, parameters: int, config: DictConfig) -> dict[str, int]:
    rollout, weight = config.actor_rollout_ref.rollout, weight_bytes(config)
    processes = config.trainer.nnodes * config.trainer.n_gpus_per_node
    engines = max(1, processes // rollout.tensor_model_parallel_size)
    trained, item = parameters * (2 * weight + ADAM_BYTES), BYTES.get(rollout.dtype, 2)
    logits = token_budget(config) * (model.vocabulary or 0) * 2 * item  # with their gradient
    computing = _activations(model, config, item) + _scores(model, config, item) + logits
    sizes = {
        "actor: weights, gradients, optimizer": trained,
        "engines: weights and cache": engines * (parameters * item + CPU_CACHE_BYTES),
        "activations and logits of a micro-batch": processes * computing,
        "processes": CPU_PROCESSES_BYTES,
    }
    sizes |= {"reference: weights": parameters * weight} if has_reference(config) else {}
    critic = {"critic: weights, gradients, optimizer": trained}
    return sizes | (critic if has_critic(config) else {})


def _critic(config: DictConfig, share: int) -> tuple[dict[str, int], dict[str, int]]:
    """What a critic, which has the size of the model, keeps on a GPU between its updates, and what it has offloaded."""
    if not has_critic(config):
        return {}, {}
    fsdp = config.critic.fsdp
    states = {
        "critic's weights": (share * weight_bytes(config), fsdp.param_offload),
        "critic's optimizer": (share * ADAM_BYTES, fsdp.optimizer_offload),
    }
    held = {name: size for name, (size, away) in states.items() if not (away or fsdp.offload_policy)}
    return held, {name: size for name, (size, _) in states.items() if name not in held}


def _computing(model: ModelFacts, parameters: int, config: DictConfig, flash_attn: bool) -> dict[str, int]:
    """Of one process: two gathered layers and both ends of the model, each with its gradient; activations; logits."""
    tokens, vocabulary = token_budget(config), model.vocabulary or 0
    layers, hidden = _layers_and_hidden_size(model)
    ends = (1 if model.language.get("tie_word_embeddings") else 2) * vocabulary * hidden
    gathered = ends + 2 * (parameters - ends) // max(layers, 1)
    fused = chosen_kernels(config.actor_rollout_ref.model, flash_attn).fused
    return {
        "gathered layers": 2 * COMPUTE_BYTES * gathered,
        "activations": _activations(model, config, COMPUTE_BYTES),
        "logits": (min(FUSED_TOKENS, tokens) * (1 + FUSED_COPIES) if fused else tokens) * vocabulary * LOGIT_BYTES,
    }


def _activations(model: ModelFacts, config: DictConfig, item: int) -> int:
    """Those of a micro-batch, in numbers of `item` bytes.

    With gradient checkpointing a layer's input is kept, and one layer at a time is computed again: about 10 times the
    hidden size and 4 times that of the feed-forward layer, and the same for their gradients.
    """
    tokens, (layers, hidden) = token_budget(config), _layers_and_hidden_size(model)
    inner = model.count("intermediate_size", "n_inner") or 4 * hidden
    layer = tokens * (10 * hidden + 4 * inner) * item
    checkpointed = config.actor_rollout_ref.model.enable_gradient_checkpointing
    return layers * tokens * hidden * item + 2 * layer if checkpointed else (layers + 1) * layer


def _scores(model: ModelFacts, config: DictConfig, item: int) -> int:
    """Those of attention on a CPU, at most: of each token to one sequence, in every layer that is kept.

    platform/shared_prefix.py writes them out in bfloat16; in float32 the kernel keeps none.
    """
    if item != COMPUTE_BYTES:
        return 0
    layers, _ = _layers_and_hidden_size(model)
    kept = 1 if config.actor_rollout_ref.model.enable_gradient_checkpointing else layers
    heads = model.count("num_attention_heads", "n_head") or 0
    return kept * heads * token_budget(config) * sequence_tokens(config) * item


def _layers_and_hidden_size(model: ModelFacts) -> tuple[int, int]:
    """0 for one that the model's configuration does not tell."""
    return model.count("num_hidden_layers", "n_layer") or 0, model.count("hidden_size", "n_embd") or 0


def _of_a_machine(model: ModelFacts, parameters: int, config: DictConfig, offloaded: int, share: int) -> dict[str, int]:
    """`offloaded` and `share`: of one process. A model with tied ends is loaded whole by each process, else by one."""
    gpus, weight = config.trainer.n_gpus_per_node, weight_bytes(config)
    loading = parameters * weight * (gpus if model.language.get("tie_word_embeddings") else 1)
    sizes = {
        "loading": loading,
        "reference": gpus * share * weight * has_reference(config),
        "offloaded": gpus * offloaded,
    }
    return {name: size for name, size in sizes.items() if size}


def _cache_tokens(model: ModelFacts, parameters: int, config: DictConfig, gpu_bytes: int) -> int | None:
    """Heads of keys and values are copied where more GPUs share an engine than there are heads."""
    rollout, item = config.actor_rollout_ref.rollout, BYTES.get(config.actor_rollout_ref.rollout.dtype, 2)
    parallel = rollout.tensor_model_parallel_size
    heads = model.count("num_key_value_heads", "num_attention_heads") or parallel
    room = engine_bytes(config, gpu_bytes) - parameters * item // parallel - ENGINE_BYTES
    a_token = model.cache_bytes(1, item) / min(parallel, heads)
    return None if not a_token else max(0, int(room / a_token))


def lacking_bytes(model: ModelFacts, config: DictConfig, gpu_bytes: int, flash_attn: bool) -> int:
    """By how much the halves of a step exceed a GPU, and the engine's cache one sequence; 0 where all of it fits."""
    memory = training_memory(model, config, gpu_bytes, flash_attn)
    if memory is None:
        return 0
    short = 0 if memory.cache_tokens is None else max(0, sequence_tokens(config) - memory.cache_tokens)
    excess = [max(0, sum(half.values()) - int(USABLE * gpu_bytes)) for half in (memory.rollout, memory.update)]
    return sum(excess) + short * model.cache_bytes(1, COMPUTE_BYTES)


def what_fits(model: ModelFacts, config: DictConfig, gpu_bytes: int, flash_attn: bool) -> str | None:
    """Settings with which the run fits such GPUs on paper, the cheapest first, or how many GPUs; None if none does."""
    here = config.trainer.nnodes * config.trainer.n_gpus_per_node
    for count in (here, *(count for count in GPU_COUNTS if count > here)):
        tried, kept = deepcopy(config), []
        if count > here:
            tried.trainer.nnodes, tried.trainer.n_gpus_per_node = max(1, count // 8), min(count, 8)
        lacking = lacking_bytes(model, tried, gpu_bytes, flash_attn)
        for key, value in _savings(model, tried, gpu_bytes, flash_attn):
            former = OmegaConf.select(tried, key)
            OmegaConf.update(tried, key, value)
            if (left := lacking_bytes(model, tried, gpu_bytes, flash_attn)) < lacking:
                kept, lacking = [*kept, f"{key}={str(value).lower()}"], left
            else:
                OmegaConf.update(tried, key, former)
        if not lacking:
            return " with ".join(filter(None, (f"{count} such GPUs" * (count > here), " ".join(kept))))
    return None


def _savings(model: ModelFacts, config: DictConfig, gpu_bytes: int, flash_attn: bool) -> Iterator[tuple[str, Any]]:
    """What takes less memory, by what it costs; each is asked for after those before it have been tried."""
    yield f"{MODEL}.use_fused_kernels", True
    if (one := sequence_tokens(config)) < token_budget(config):
        yield f"{ACTOR}.ppo_max_token_len_per_gpu", one
    for offload in (None, "optimizer_offload", "param_offload"):
        if offload:
            yield f"{ACTOR}.fsdp_config.{offload}", True
        memory = training_memory(model, config, gpu_bytes, flash_attn)
        used = sum(memory.rollout.values()) - memory.rollout["engine"] if memory else 0
        share = round((USABLE - used / gpu_bytes) // STEP * STEP, 2)
        if LEAST_UTILIZATION <= share < (config.actor_rollout_ref.rollout.gpu_memory_utilization or 0):
            yield UTILIZATION, share
