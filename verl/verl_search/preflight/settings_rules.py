"""Rules over the settings of a training run alone: values that are out of range, or do not fit together.

Each stands for a condition that verl, an engine or our trainer meets only after minutes, or never.
Does not cover: settings without effect (upstream_settings.py), kinds of values (composition.py), files and servers.
Rules about what must divide what, or fit into what, stand in batch_rules.py.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from omegaconf import DictConfig, OmegaConf

from flashrag.preflight import Finding, Rule, error, warning
from verl_search.composition import shipped_settings
from verl_search.preflight.batch_rules import (
    ACTOR,
    ROLLOUT,
    batches,
    critic,
    engines,
    is_count,
    lengths,
    micro_batching_agrees,
)
from verl_search.preflight.facts import question_paths
from verl_search.preflight.upstream_settings import added_settings, settings_without_effect
from verl_search.rollout.sampling import ENGINES

COUNTS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    f"{ACTOR}.ppo_mini_batch_size",
    f"{ACTOR}.ppo_epochs",
    "critic.ppo_mini_batch_size",
    "critic.ppo_epochs",
    f"{ACTOR}.ulysses_sequence_parallel_size",
    f"{ROLLOUT}.n",
    f"{ROLLOUT}.val_kwargs.n",
    f"{ROLLOUT}.tensor_model_parallel_size",
    f"{ROLLOUT}.data_parallel_size",
    f"{ROLLOUT}.max_num_seqs",
    f"{ROLLOUT}.max_num_batched_tokens",
    f"{ROLLOUT}.agent.num_workers",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "trainer.total_epochs",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units",
)
COUNTS_OR_NULL = (
    "data.gen_batch_size",
    "data.val_batch_size",
    f"{ACTOR}.ppo_max_token_len_per_gpu",
    f"{ACTOR}.ppo_micro_batch_size_per_gpu",
    "critic.ppo_infer_max_token_len_per_gpu",
    f"{ROLLOUT}.max_model_len",
    f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes",
    "trainer.total_training_steps",
    "trainer.max_actor_ckpt_to_keep",
    "ray_kwargs.ray_init.num_cpus",
)
# Of any sign.
WHOLE_NUMBERS = {
    "trainer.save_freq": "the steps between two saves, or -1 for none",
    "trainer.test_freq": "the steps between two validations, or -1 for none",
    "data.seed": "a whole number, or null",
}
Ranges = Mapping[str, tuple[Callable[[float], bool], str]]
RANGES: Ranges = {
    f"{ROLLOUT}.temperature": (lambda value: value > 0, "a number above 0: GRPO compares samples that differ"),
    f"{ROLLOUT}.val_kwargs.temperature": (lambda value: value >= 0, "a number from 0 on; 0 is greedy"),
    f"{ROLLOUT}.top_p": (lambda value: 0 < value <= 1, "a number above 0, up to 1"),
    f"{ROLLOUT}.val_kwargs.top_p": (lambda value: 0 < value <= 1, "a number above 0, up to 1"),
    f"{ROLLOUT}.top_k": (lambda value: value >= 1 or value in (-1, 0), "a whole number from 1 on, or -1 for no limit"),
    f"{ROLLOUT}.gpu_memory_utilization": (lambda value: 0 < value <= 1, "a share of the memory above 0, up to 1"),
    f"{ACTOR}.optim.lr": (lambda value: value > 0, "a number above 0"),
    f"{ACTOR}.optim.lr_warmup_steps_ratio": (lambda value: 0 <= value <= 1, "a share of the steps, from 0 to 1"),
    f"{ACTOR}.optim.clip_grad": (lambda value: value > 0, "a number above 0"),
    f"{ACTOR}.clip_ratio": (lambda value: value > 0, "a number above 0"),
    f"{ACTOR}.kl_loss_coef": (lambda value: value >= 0, "a number from 0 on"),
    f"{ACTOR}.policy_loss.llds_coef": (lambda value: value >= 0, "a number from 0 on"),
    "algorithm.gamma": (lambda value: 0 < value <= 1, "a number above 0, up to 1"),
    "algorithm.lam": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
}
# Those that compare the answers to a question with each other, and those that do not.
GROUP_ESTIMATORS = (
    *("grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "opo", "gpg"),
    "reinforce_plus_plus_baseline",
)
ESTIMATORS = (*GROUP_ESTIMATORS, "reinforce_plus_plus", "gae")
_LOSSES = (
    *("vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "dro", "cispo"),
    "bypass_mode",
)
_KL = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
CHOICES: dict[str, tuple[str | None, ...]] = {
    f"{ACTOR}.kl_loss_type": (*_KL, *(f"{name}+" for name in _KL)),
    f"{ACTOR}.policy_loss.loss_mode": (*_LOSSES, "llds"),
    f"{ACTOR}.policy_loss.llds_base": _LOSSES,
    "algorithm.adv_estimator": ESTIMATORS,
    f"{ROLLOUT}.name": ENGINES,
    f"{ROLLOUT}.dtype": ("bfloat16", "float32", "float16"),
    f"{ACTOR}.optim.lr_scheduler_type": ("constant", "cosine"),
    "algorithm.kl_ctrl.type": ("fixed", "adaptive"),
    "algorithm.rollout_correction.rollout_is": (None, "token", "sequence"),
}
LOGGERS = (
    *("console", "file", "tensorboard", "wandb", "mlflow", "swanlab", "vemlp_wandb", "clearml", "trackio"),
    "rl_insight",
)
# What a group can be judged by: its reward, or a measure of its episodes (verl_search/rollout/measures.py).
GROUP_METRICS = ("reward", "em", "f1", "format_valid", "searches", "tool_calls", "sampled_tokens", "spliced_tokens")


def not_counts(config: DictConfig, keys: Iterable[str], or_null: Iterable[str] = ()) -> Iterator[Finding]:
    for key, ending in ((key, ending) for group, ending in ((keys, ""), (or_null, ", or null")) for key in group):
        value = OmegaConf.select(config, key)
        if not (is_count(value) or (value is None and ending)):
            yield error(f"{key}={value}: expected a whole number from 1 on{ending}")


def counts(config: DictConfig) -> Iterator[Finding]:
    yield from not_counts(config, COUNTS, COUNTS_OR_NULL)
    if not is_count(workers := config.data.dataloader_num_workers, least=0):
        yield error(f"data.dataloader_num_workers={workers}: expected a whole number from 0 on")
    for key, expected in WHOLE_NUMBERS.items():
        value = OmegaConf.select(config, key)
        if not is_count(value, least=-sys.maxsize) and (value is not None or "null" not in expected):
            yield error(f"{key}={value}: expected {expected}")


def ranges(config: DictConfig, expected_ranges: Ranges = RANGES) -> Iterator[Finding]:
    for key, (holds, expected) in expected_ranges.items():
        value = OmegaConf.select(config, key)
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if not is_number or not holds(value):
            yield error(f"{key}={value}: expected {expected}")


def choices(config: DictConfig) -> Iterator[Finding]:
    for key, known in CHOICES.items():
        if (value := OmegaConf.select(config, key)) not in known:
            yield error(f"{key}={value}: expected one of {', '.join(map(str, known))}")
    logger = config.trainer.logger or ()
    for name in [logger] if isinstance(logger, str) else logger:
        if name not in LOGGERS:
            yield error(f"trainer.logger={logger}: {name} is not one of {', '.join(LOGGERS)}")


def frequencies(config: DictConfig) -> Iterator[Finding]:
    trainer = config.trainer
    if trainer.save_freq <= 0 and not trainer.val_only:
        yield warning(
            f"trainer.save_freq={trainer.save_freq}: no checkpoint is saved, not even at the end; give the steps "
            "between two (--save_freq)"
        )
    if trainer.val_only and not trainer.val_before_train:
        yield error("trainer.val_only=true with trainer.val_before_train=false would train; set the latter to true")


def groups(config: DictConfig) -> Iterator[Finding]:
    rollout, algorithm = config.actor_rollout_ref.rollout, config.algorithm
    if rollout.n == 1 and algorithm.adv_estimator in GROUP_ESTIMATORS and not config.trainer.val_only:
        yield error(
            f"{ROLLOUT}.n=1: {algorithm.adv_estimator} compares the answers to one question with each other, so a "
            "single one teaches nothing; give 2 or more (--rollout_n)"
        )
    if algorithm.filter_groups.enable and algorithm.filter_groups.metric not in GROUP_METRICS:
        yield error(
            f"algorithm.filter_groups.metric={algorithm.filter_groups.metric}: expected one of "
            f"{', '.join(GROUP_METRICS)}"
        )
    if rollout.val_kwargs.n > 1 and rollout.val_kwargs.temperature == 0:
        yield warning(
            f"{ROLLOUT}.val_kwargs.n={rollout.val_kwargs.n} with val_kwargs.temperature=0 asks for the same answer "
            "each time; set n=1, or a temperature above 0"
        )


def losses(config: DictConfig) -> Iterator[Finding]:
    actor, correction = config.actor_rollout_ref.actor, config.algorithm.rollout_correction
    loss = actor.policy_loss
    used = loss.llds_base if loss.loss_mode == "llds" else loss.loss_mode
    if used == "dro" and not (loss.dro_beta or 0) > 0:
        yield error(f"{ACTOR}.policy_loss.dro_beta={loss.dro_beta}: the loss dro needs a number above 0")
    if used == "bypass_mode" and not correction.bypass_mode:
        yield error(
            "the policy loss bypass_mode takes the engine's probabilities for the old ones; add "
            "algorithm.rollout_correction.bypass_mode=true"
        )
    elif correction.bypass_mode and used != "bypass_mode" and (correction.rollout_is or correction.rollout_rs):
        yield error(
            "algorithm.rollout_correction.bypass_mode=true leaves rollout_is and rollout_rs to the policy loss, and "
            f"only one reads them; add {ACTOR}.policy_loss.loss_mode=bypass_mode, or leave bypass_mode at false"
        )
    for name in ("llds_base", "llds_coef") if loss.loss_mode != "llds" else ():
        if loss[name] != shipped_settings("research")[key := f"{ACTOR}.policy_loss.{name}"]:
            yield warning(f"{key}={loss[name]} has no effect without {ACTOR}.policy_loss.loss_mode=llds")
    one_update = config.data.train_batch_size <= actor.ppo_mini_batch_size and actor.ppo_epochs == 1
    if loss.loss_mode == "llds" and one_update and not correction.bypass_mode:
        yield warning(
            f"{ACTOR}.policy_loss.loss_mode=llds protects what an update of the same step has changed, and a step has "
            f"one update only; lower {ACTOR}.ppo_mini_batch_size (--ppo_mini_batch_size), or raise {ACTOR}.ppo_epochs"
        )


def probabilities(config: DictConfig) -> Iterator[Finding]:
    rollout, correction = config.actor_rollout_ref.rollout, config.algorithm.rollout_correction
    if rollout.calculate_log_probs:
        return
    if correction.bypass_mode or correction.rollout_is or correction.rollout_rs:
        yield error(f"algorithm.rollout_correction needs {ROLLOUT}.calculate_log_probs=true")
    else:
        yield warning(
            f"{ROLLOUT}.calculate_log_probs=false: trajectories hold no probabilities, and the alarm likelihood_drop "
            "sees none"
        )


def results(config: DictConfig) -> Iterator[Finding]:
    correction = config.algorithm.rollout_correction
    for name in () if config.search.mask_results else ("bypass_mode", "rollout_is", "rollout_rs"):
        if correction[name]:
            key = f"algorithm.rollout_correction.{name}"
            yield error(
                f"search.mask_results=false trains on tokens that no engine gave a probability, which {key}="
                f"{correction[name]} needs; add {key}={'false' if name == 'bypass_mode' else 'null'}"
            )


def stops(config: DictConfig) -> Iterator[Finding]:
    rollout = config.actor_rollout_ref.rollout
    if rollout.name == "sglang" and rollout.skip_tokenizer_init:
        yield error(f"SGLang stops at </search> only with a tokenizer: set {ROLLOUT}.skip_tokenizer_init=false")


def determinism(config: DictConfig) -> Iterator[Finding]:
    if config.actor_rollout_ref.rollout.full_determinism and config.search.seed is None:
        yield error(
            f"{ROLLOUT}.full_determinism=true with search.seed=null samples all answers to a question with one seed, "
            "so they are all the same; give search.seed a number"
        )


def resuming(config: DictConfig) -> Iterator[Finding]:
    mode, path = config.trainer.resume_mode, config.trainer.resume_from_path
    if mode not in ("auto", "disable", "resume_path"):
        yield error(f"trainer.resume_mode={mode}: expected auto, disable or resume_path")
    elif mode == "resume_path" and "global_step_" not in str(path):
        yield error(
            f"trainer.resume_from_path={path}: expected the folder of a checkpoint, …/global_step_N, because "
            "trainer.resume_mode=resume_path"
        )
    elif mode != "resume_path" and path:
        yield error(f"trainer.resume_from_path={path} is not read; add trainer.resume_mode=resume_path")


def metrics_file(config: DictConfig) -> Iterator[Finding]:
    if "file" not in (config.trainer.logger or ()):
        yield warning(
            f"trainer.logger={config.trainer.logger} lacks file: the console shows no steps, the run has no report, "
            "and after a resume the alarms do not know the steps before it"
        )


def question_files(config: DictConfig) -> Iterator[Finding]:
    for key in ("data.train_files", "data.val_files"):
        for path in () if OmegaConf.select(config, key) is None else question_paths(config, key):
            if path.suffix != ".parquet":
                yield error(f"{key}={path}: verl reads only files whose name ends in .parquet; rename it")


def prompts_are_one(config: DictConfig) -> Iterator[Finding]:
    for name in ("apply_chat", "prompt_template_name", "prompt_file"):
        if (own := config.data[name]) != (of_search := config.search[name]):
            yield error(f"data.{name}={own} differs from search.{name}={of_search}; set the latter only")


def search_deadline(config: DictConfig) -> Iterator[Finding]:
    search = config.search
    if search.search_timeout_s is not None and search.search_timeout_s <= search.timeout_s and search.max_attempts > 1:
        yield warning(
            f"search.search_timeout_s={search.search_timeout_s} ends a search before the first of its "
            f"{search.max_attempts} attempts does (search.timeout_s={search.timeout_s}); raise the former, or lower "
            "the latter"
        )


def _once_counts_hold(rule: Rule[DictConfig]) -> Rule[DictConfig]:
    """The rule, for a config whose counts are numbers that it can calculate with."""

    def guarded(config: DictConfig) -> Iterable[Finding] | None:
        return () if any(True for _ in counts(config)) else rule(config)

    return guarded


SETTINGS_RULES: dict[str, Rule[DictConfig]] = {
    "settings.counts": counts,
    "settings.ranges": ranges,
    "settings.choices": choices,
    "settings.frequencies": _once_counts_hold(frequencies),
    "settings.groups": _once_counts_hold(groups),
    "settings.batches": _once_counts_hold(batches),
    "settings.engines": _once_counts_hold(engines),
    "settings.lengths": _once_counts_hold(lengths),
    "settings.losses": _once_counts_hold(losses),
    "settings.critic": _once_counts_hold(critic),
    "settings.probabilities": probabilities,
    "settings.results": results,
    "settings.stops": stops,
    "settings.micro-batching": micro_batching_agrees,
    "settings.determinism": determinism,
    "settings.resuming": resuming,
    "settings.metrics-file": metrics_file,
    "settings.question-files": question_files,
    "settings.prompts": prompts_are_one,
    "settings.search-deadline": search_deadline,
    "settings.without-effect": settings_without_effect,
    "settings.added": added_settings,
}
