"""Rules about the machine that a training run finds: its GPUs, processors and memory. Driver and tools: hardware.py.

Each stands for what torch, Triton, vLLM or Ray meets only after minutes, or waits for without end. Of a cluster this
machine alone is looked at; platform/ray_cluster.py asks the cluster for its GPUs and processors.
"""

from collections.abc import Iterator
from importlib.util import find_spec

from flashrag.preflight import Finding, Rule, error, gib, note, warning
from flashrag.system.machine import VISIBLE_DEVICES
from verl_search.platform.kernels import SDPA, chosen_kernels
from verl_search.platform.ray_cluster import needs
from verl_search.preflight.batch_rules import ACTOR, ROLLOUT, divisor, sequence_parallel
from verl_search.preflight.facts import TrainingFacts
from verl_search.preflight.hardware import DEVICE_RULES, no_gpu, visible_devices
from verl_search.preflight.memory import engine_bytes, lacking_bytes, what_fits
from verl_search.preflight.sizes import has_critic

CORES_OF_A_GPU = 2
FLASH_ATTN_SOURCE = "https://github.com/Dao-AILab/flash-attention"


def gpus_are_enough(facts: TrainingFacts) -> Iterator[Finding]:
    """A cluster's GPUs are those that its nodes tell (ray.cluster)."""
    wanted, there = facts.config.trainer.n_gpus_per_node, len(facts.gpus)
    if not facts.trains_here or facts.ray.joins or wanted <= there:
        return
    if not there:
        yield no_gpu(facts, f"trainer.n_gpus_per_node={wanted}")
        return
    parallel = facts.config.actor_rollout_ref.rollout.tensor_model_parallel_size
    fitting = divisor(there, parallel)
    also = "" if fitting == parallel else f" {ROLLOUT}.tensor_model_parallel_size={fitting}"
    yield error(
        f"trainer.n_gpus_per_node={wanted}, but this machine shows {there} GPUs{visible_devices()}; give "
        f"--n_gpus_per_node {there}{also}"
    )


def attention_is_there(facts: TrainingFacts) -> Iterator[Finding]:
    model = facts.config.actor_rollout_ref.model
    if facts.config.trainer.device == "cpu" or facts.flash_attn:
        return
    chosen, key = chosen_kernels(model, facts.flash_attn), "actor_rollout_ref.model"
    if chosen.attention.startswith("flash_attention"):
        yield error(
            f"{key}.override_config.attn_implementation={chosen.attention}, but flash-attn is not installed; leave it "
            f"at null, for {SDPA}, or build flash-attn: {FLASH_ATTN_SOURCE}"
        )
    elif not chosen.fused:
        yield warning(
            f"{key}.use_fused_kernels=false without flash-attn computes log-probabilities row by row, and keeps all "
            "logits in float32; leave it at null"
        )
    else:
        yield note(f"flash-attn is not installed: training computes with the attention {SDPA} and verl's fused kernels")


def sequences_can_be_divided(facts: TrainingFacts) -> Iterator[Finding]:
    """verl divides a sequence by a patch of flash attention; with another one each GPU would see its own part alone."""
    config = facts.config
    attention = chosen_kernels(config.actor_rollout_ref.model, facts.flash_attn).attention
    sizes = {f"{ACTOR}.ulysses_sequence_parallel_size": sequence_parallel(config)}
    if has_critic(config):
        sizes["critic.fsdp.ulysses_sequence_parallel_size"] = config.critic.fsdp.ulysses_sequence_parallel_size
    for key, size in sizes.items():
        if size > 1 and not attention.startswith("flash_attention"):
            yield error(
                f"{key}={size} divides each sequence among GPUs, which verl does inside flash attention only, and the "
                f"attention is {attention}: leave it at 1, or build flash-attn: {FLASH_ATTN_SOURCE}"
            )


def processors_are_enough(facts: TrainingFacts) -> Iterator[Finding]:
    """Ray waits without end for processors that it was not given; a Ray of the run's own is given what is reserved."""
    config, needed, ray_init = facts.config, needs(facts.config), facts.config.ray_kwargs.ray_init
    if facts.ray.joins:
        return
    if ray_init.num_cpus is not None and ray_init.num_cpus < needed.cpus:
        yield error(
            f"ray_kwargs.ray_init.num_cpus={ray_init.num_cpus}, but {needed.gpus_per_node} training processes, the "
            f"queue and the engines reserve {needed.cpus}, and Ray would wait for them without end; leave it at null"
        )
    least = CORES_OF_A_GPU * needed.gpus_per_node
    if config.trainer.device != "cpu" and facts.machine.cores < least:
        yield warning(
            f"this machine has {facts.machine.cores} cores for {needed.gpus_per_node} GPUs; expected at least {least}, "
            "because each has a training process and an engine: rollouts will wait for processors. Take fewer GPUs "
            "(--n_gpus_per_node), or more cores"
        )


def gpu_memory_is_enough(facts: TrainingFacts) -> Iterator[Finding]:
    if not facts.trains_here or facts.gpu_bytes is None:
        return
    config, there = facts.config, facts.gpu_bytes
    if facts.model and facts.memory and lacking_bytes(facts.model, config, there, facts.flash_attn):
        fitting = what_fits(facts.model, config, there, facts.flash_attn)
        rollout, update = (sum(half.values()) for half in (facts.memory.rollout, facts.memory.update))
        tokens = facts.memory.cache_tokens
        cache = ""
        if tokens is not None and tokens < facts.sequence_tokens:
            cache = f", and the engine keeps {tokens:,} tokens of an episode's {facts.sequence_tokens:,}"
        yield warning(
            f"on paper a GPU needs {gib(rollout)} in rollouts and {gib(update)} in updates, and has {gib(there)}{cache}"
            f"; what would fit: {fitting or 'a smaller model'}"
        )
    # On a cluster Ray chooses the GPUs, and others may be another run's.
    for gpu in () if facts.ray.joins else facts.gpus[: config.trainer.n_gpus_per_node]:
        taken = engine_bytes(config, gpu.memory_bytes or 0)
        if gpu.memory_bytes and gpu.free_bytes is not None and gpu.free_bytes < taken:
            share = config.actor_rollout_ref.rollout.gpu_memory_utilization
            yield error(
                f"a GPU has {gib(gpu.free_bytes)} of {gib(gpu.memory_bytes)} free, and {ROLLOUT}."
                f"gpu_memory_utilization={share} takes {gib(taken)} of it: end what else uses it (nvidia-smi lists it; "
                f"a retrieval server takes none with {VISIBLE_DEVICES}= before its command), or name other GPUs "
                f"({VISIBLE_DEVICES})"
            )
            return


def host_memory_is_enough(facts: TrainingFacts) -> Iterator[Finding]:
    if facts.memory is None or not (facts.trains_here or facts.config.trainer.device == "cpu"):
        return
    needed, there = sum(facts.memory.host.values()), facts.machine.memory_bytes
    if needed > there:
        lower = (
            "lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
            if facts.config.trainer.device == "cpu"
            else "offload less (actor_rollout_ref.actor.fsdp_config)"
        )
        yield warning(
            f"training needs at least {gib(needed)} of memory on paper, this machine has {gib(there)}: give a smaller "
            f"model, or {lower}"
        )


def engine_is_installed(facts: TrainingFacts) -> Iterator[Finding]:
    name = facts.config.actor_rollout_ref.rollout.name
    if name == "sglang" and find_spec("sglang") is None:
        yield error(
            f"{ROLLOUT}.name=sglang, but SGLang is not installed beside verl, and no version of it goes with verl's "
            "torch (requirements-sglang.txt): leave it at vllm. In an evaluation scripts/serve_model.sh takes SGLang"
        )


HARDWARE_RULES: dict[str, Rule[TrainingFacts]] = {
    "machine.gpus": gpus_are_enough,
    "machine.processors": processors_are_enough,
    "machine.gpu-memory": gpu_memory_is_enough,
    "machine.memory": host_memory_is_enough,
    "model.attention": attention_is_there,
    "model.sequence-parallel": sequences_can_be_divided,
    "config.engine": engine_is_installed,
    **DEVICE_RULES,
}
