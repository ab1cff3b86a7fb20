"""The sizes of a run on paper: tokens, bytes of a number, and the disk for checkpoints and trajectories.

Does not cover: memory (memory.py).
"""

from omegaconf import DictConfig

from flashrag.generator import ModelFacts

BYTES = {"fp32": 4, "float32": 4, "fp16": 2, "float16": 2, "bf16": 2, "bfloat16": 2}
ADAM_BYTES = 8  # two moments in float32 for each parameter
JSON_BYTES_PER_TOKEN = 12  # of a trajectory: text, ids and log-probabilities, compressed by nothing
MIB = 2**20
VERL_BUCKET_MEGABYTES = 2048


def sequence_tokens(config: DictConfig) -> int:
    """The longest prompt and response together."""
    return config.data.max_prompt_length + config.data.max_response_length


def token_budget(config: DictConfig) -> int:
    """The most tokens that a training process computes at once."""
    return config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu or 2 * sequence_tokens(config)


def has_critic(config: DictConfig) -> bool:
    return config.algorithm.adv_estimator == "gae"


def weight_bytes(config: DictConfig) -> int:
    """Of one parameter in the training processes."""
    return BYTES.get(config.actor_rollout_ref.actor.fsdp_config.model_dtype or "fp32", 4)


def checkpoint_bytes(model: ModelFacts, config: DictConfig) -> int | None:
    """One checkpoint of full training, with a critic that of both; None where the number of parameters is unknown."""
    if model.parameters is None:
        return None
    weight, contents = weight_bytes(config), [*config.actor_rollout_ref.actor.checkpoint.save_contents]
    if has_critic(config):
        contents += config.critic.checkpoint.save_contents
    parts = {"model": weight, "optimizer": ADAM_BYTES, "hf_model": weight}
    return model.parameters * sum(parts.get(part, 0) for part in contents)


def kept_checkpoints(config: DictConfig, total_steps: int) -> int:
    """The most on the disk: one each `save_freq` steps and the last, or those that are kept and the best."""
    if config.trainer.save_freq <= 0:
        return 0
    written = -(-total_steps // config.trainer.save_freq)
    return min(written, (config.trainer.max_actor_ckpt_to_keep or written) + 1)


def trajectory_bytes(config: DictConfig, total_steps: int) -> int:
    """An upper bound: every kept episode as long as it may be."""
    kept = total_steps // config.search.trajectory_keep_every + config.search.trajectory_keep_last
    episodes = min(kept, total_steps) * config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    return episodes * sequence_tokens(config) * JSON_BYTES_PER_TOKEN


def bucket_megabytes(model: ModelFacts | None, config: DictConfig) -> int:
    """The buffer that weights travel through to the engine: as configured, or larger if a tensor needs it.

    null means as large as the largest tensor, or verl's own size where the files do not tell that.
    """
    configured = config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes
    largest = (model.largest_tensor if model else None) or 0
    return max(configured or 0, -(-largest * weight_bytes(config) // MIB)) or VERL_BUCKET_MEGABYTES
