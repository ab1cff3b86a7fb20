"""Rules over batches, processes and lengths: what must divide what, and what must fit into what.

The conditions are those of verl 0.9.1 (utils/config.py, workers/engine_workers.py, workers/engine/utils.py,
utils/seqlen_balancing.py, trainer/ppo/v1/trainer_base.py), which checks them after the engines have started.
"""

import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flashrag.preflight import Finding, error, warning
from verl_search.preflight.sizes import has_critic, sequence_tokens

ACTOR, ROLLOUT, REF = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref"))


def is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def divisor(count: int, most: int) -> int:
    """The largest divisor of a count that is at most so large.

    >>> divisor(6, 4), divisor(1, 2), divisor(8, 2)
    (3, 1, 2)
    """
    return max(size for size in range(1, min(count, most) + 1) if count % size == 0)


def batches(config: DictConfig) -> Iterator[Finding]:
    data, actor, n = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    batch, mini = data.train_batch_size, actor.ppo_mini_batch_size
    together = f"data.train_batch_size={batch} and {ACTOR}.ppo_mini_batch_size={mini}"
    if batch < mini:
        yield error(
            f"{together}: a weight update takes more questions than a step has; lower the latter "
            f"(--ppo_mini_batch_size {batch})"
        )
    elif batch % mini:
        yield warning(f"{together}: the last update of each step is filled up with padding; give a multiple")
    fetched = data.gen_batch_size or batch
    if batch % fetched and not config.algorithm.filter_groups.enable:
        yield error(f"data.gen_batch_size={fetched} does not divide data.train_batch_size={batch}; leave it at null")
    if 0 < data.train_max_samples < batch:
        yield error(
            f"data.train_max_samples={data.train_max_samples} are less than a step's questions "
            f"(data.train_batch_size={batch}); raise it, or leave it at -1 for all"
        )
    processes, parallel = _processes(config), sequence_parallel(config)
    if processes % parallel:
        yield error(f"{ACTOR}.ulysses_sequence_parallel_size={parallel} does not divide the {processes} GPUs")
    elif mini * n % (shards := processes // parallel):
        step = shards // math.gcd(n, shards)
        fitting = max(mini // step, 1) * step
        yield error(
            f"{ACTOR}.ppo_mini_batch_size={mini} times {ROLLOUT}.n={n} makes {mini * n} episodes, which {shards} "
            f"training processes cannot share evenly; give a multiple of {step}, such as --ppo_mini_batch_size "
            f"{fitting} --train_batch_size {max(batch // fitting, 1) * fitting}"
        )
    elif not actor.use_dynamic_bsz:
        yield from _micro_batches(config, mini * n // shards)


def _micro_batches(config: DictConfig, episodes: int) -> Iterator[Finding]:
    """`episodes`: those of one process in one update."""
    for key in (f"{ACTOR}.ppo_micro_batch_size_per_gpu", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu"):
        micro = OmegaConf.select(config, key)
        if not is_count(micro) or episodes % micro:
            yield error(
                f"{key}={micro}: expected a divisor of {episodes}, the episodes of one process in a weight update, "
                f"because {ACTOR}.use_dynamic_bsz=false"
            )


def _processes(config: DictConfig) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node


def sequence_parallel(config: DictConfig) -> int:
    """The GPUs that share a sequence of the actor."""
    actor = config.actor_rollout_ref.actor
    return max(actor.ulysses_sequence_parallel_size, actor.fsdp_config.ulysses_sequence_parallel_size)


def engines(config: DictConfig) -> Iterator[Finding]:
    rollout, processes = config.actor_rollout_ref.rollout, _processes(config)
    if rollout.pipeline_model_parallel_size != 1:
        yield error(
            f"{ROLLOUT}.pipeline_model_parallel_size: verl's engines take 1 only; raise tensor_model_parallel_size"
        )
    size, of_node = rollout.tensor_model_parallel_size * rollout.data_parallel_size, config.trainer.n_gpus_per_node
    divides = processes % size == 0 and (of_node % size == 0 or size % of_node == 0)
    if not divides and not rollout.disaggregation.enabled:
        yield error(
            f"{ROLLOUT}.tensor_model_parallel_size={rollout.tensor_model_parallel_size} times data_parallel_size="
            f"{rollout.data_parallel_size} makes {size} GPUs for an engine, which does not divide the {of_node} of a "
            f"node (--n_gpus_per_node), nor takes whole nodes; give {ROLLOUT}.tensor_model_parallel_size="
            f"{divisor(of_node, rollout.tensor_model_parallel_size)}"
        )
    if config.trainer.device == "cpu" and config.actor_rollout_ref.actor.strategy != "fsdp2":
        yield error(f"{ACTOR}.strategy={config.actor_rollout_ref.actor.strategy}: only fsdp2 runs on a CPU")


def critic(config: DictConfig) -> Iterator[Finding]:
    if not has_critic(config):
        return
    own, mini, n = config.critic, config.critic.ppo_mini_batch_size, config.actor_rollout_ref.rollout.n
    if config.data.train_batch_size < mini:
        yield error(
            f"critic.ppo_mini_batch_size={mini}: an update of the critic takes more questions than a step has "
            f"(data.train_batch_size={config.data.train_batch_size}); lower it"
        )
    parallel = max(1, own.fsdp.ulysses_sequence_parallel_size)
    shards = _processes(config) // parallel
    if shards and mini * n % shards:
        yield error(
            f"critic.ppo_mini_batch_size={mini} times {ROLLOUT}.n={n} makes {mini * n} episodes, which {shards} "
            f"training processes cannot share evenly; give a multiple of {shards // math.gcd(n, shards)}"
        )
    sequence, tokens = sequence_tokens(config), own.ppo_infer_max_token_len_per_gpu
    if tokens is not None and tokens * parallel < sequence:
        yield error(f"critic.ppo_infer_max_token_len_per_gpu={tokens} has no room for one episode's {sequence} tokens")
    if config.trainer.device == "cpu" and own.strategy != "fsdp2":
        yield error(f"critic.strategy={own.strategy}: only fsdp2 runs on a CPU")


def lengths(config: DictConfig) -> Iterator[Finding]:
    data, rollout = config.data, config.actor_rollout_ref.rollout
    for own, of_data in (("prompt_length", "max_prompt_length"), ("response_length", "max_response_length")):
        if rollout[own] != data[of_data]:
            yield error(
                f"{ROLLOUT}.{own}={rollout[own]} differs from data.{of_data}={data[of_data]}; set the latter only"
            )
    sequence = sequence_tokens(config)
    of_sequence = f"{sequence} tokens of data.max_prompt_length and data.max_response_length"
    if rollout.max_model_len is not None and rollout.max_model_len < sequence:
        yield error(
            f"{ROLLOUT}.max_model_len={rollout.max_model_len} has no room for the {of_sequence}; leave it at null"
        )
    if config.actor_rollout_ref.actor.use_dynamic_bsz:
        own = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu  # the others follow it
        others = {part: OmegaConf.select(config, f"{part}.log_prob_max_token_len_per_gpu") for part in (ROLLOUT, REF)}
        budgets = {f"{part}.log_prob_max_token_len_per_gpu": tokens for part, tokens in others.items() if tokens != own}
        for key, tokens in {f"{ACTOR}.ppo_max_token_len_per_gpu": own, **budgets}.items():
            if tokens is not None and tokens * sequence_parallel(config) < sequence:
                yield error(f"{key}={tokens} has no room for one episode's {of_sequence}; raise it")
    if config.search.max_result_tokens >= data.max_response_length:
        yield warning(
            f"search.max_result_tokens={config.search.max_result_tokens} lets one result take all of data."
            f"max_response_length={data.max_response_length}, which counts results too, and then no answer fits; "
            "lower the former, or raise the latter"
        )


def micro_batching_agrees(config: DictConfig) -> Iterator[Finding]:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if rollout.log_prob_use_dynamic_bsz != actor.use_dynamic_bsz:
        yield error(
            f"{ROLLOUT}.log_prob_use_dynamic_bsz={rollout.log_prob_use_dynamic_bsz} differs from "
            f"{ACTOR}.use_dynamic_bsz={actor.use_dynamic_bsz}; set the latter only"
        )
