"""Train with search: `python -m verl_search.main_ppo [--config-name research|cpu|demo] key=value …`.

Upstream's PPO entry with our config group, agent loop, dataset and sampler. This module checks all of the input before
Ray or an engine starts. The published command line is `training/run.sh`.
"""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.generator import local_folder, read_model_facts
from flashrag.preflight import enforce
from flashrag.prompts import choose_prompt
from flashrag.reward import absolute
from flashrag.system.engine import FLASHINFER_VARIABLE
from flashrag.system.machine import has_nvcc
from flashrag.system.network import direct_environment
from verl_search.composition import (
    CONFIG_DIR,
    check_command_line,
    check_composed,
    in_one_line,
    register_with_hydra,
    settle,
)
from verl_search.platform.kernels import complete_kernels
from verl_search.platform.ray_cluster import collect_rarely, configured_ray, own_cpus, ray_init_settings
from verl_search.preflight.facts import MODEL_KEY, TrainingFacts
from verl_search.preflight.rules import preflight
from verl_search.preflight.sizes import bucket_megabytes, sequence_tokens, token_budget
from verl_search.rollout.trajectories import cut_torn_tails
from verl_search.trainer.run_folder import write_end
from verl_search.trainer.stopping import StopTraining, TrainingFailed, resume_command
from verl_search.trainer.wandb_mode import MODE_VARIABLE, configured_wandb

# Set by a program that has examined the same run a moment ago, such as training/launch.py.
EXAMINED_VARIABLE = "RESEARCH_EXAMINED"


def check_input(config: DictConfig, config_name: str = "") -> None:
    """Raise `UserError` with everything that keeps the run from starting; keep warnings in the run's folder."""
    facts = TrainingFacts(config, config_name)
    enforce(preflight(facts), facts.save_path)


def check_platform(config: DictConfig) -> None:
    """Raise `UserError` when the config is for another kind of machine."""
    from verl.plugin.platform.platform_manager import get_platform

    found = get_platform().device_name
    if config.trainer.device != found:
        raise UserError(
            f"trainer.device={config.trainer.device} but this machine's platform is {found!r}; "
            "use --config-name cpu without an accelerator, research with GPUs (VERL_PLATFORM overrides the detection)"
        )


def train(config: DictConfig) -> None:
    """Validate everything, then hand over to upstream's trainer."""
    if not os.environ.get(EXAMINED_VARIABLE):
        check_input(config)
    set_environment(config)
    # From here on verl is imported, which takes half a minute on two cores.
    from verl_search.platform import upstream

    upstream.check_plugin_loaded()
    check_platform(config)
    for condition in ("always", config.actor_rollout_ref.rollout.name, config.trainer.device):
        upstream.check_contract(upstream.required_names(condition))
    complete(config)
    validate(config)
    from ray.exceptions import RayActorError, RayTaskError
    from verl.trainer.main_ppo import run_ppo

    from verl_search.trainer.trainer import TaskRunnerHere

    cut_torn_tails(Path(config.search.trajectory_dir))
    try:
        run_ppo(config, task_runner_class=TaskRunnerHere(config))
    except RayTaskError as error:
        if isinstance(error.cause, StopTraining):
            raise StopTraining(f"{error.cause}. To go on: {resume_command()}") from None
        raise TrainingFailed(f"{type(error.cause).__name__}: {error.cause}") from error
    except RayActorError as error:
        raise TrainingFailed(f"the trainer's process died: {' '.join(str(error).split())}") from error


def set_environment(config: DictConfig) -> None:
    """Set what the processes that Ray starts inherit: the way around proxies, wandb's mode, the engine's sampler.

    FlashInfer's sampler is compiled by nvcc at its first use; vLLM samples without it.
    """
    os.environ.update(direct_environment(os.environ))
    if config.trainer.device != "cpu" and not has_nvcc():
        os.environ.setdefault(FLASHINFER_VARIABLE, "0")
    if mode := configured_wandb(config).mode:
        os.environ[MODE_VARIABLE] = mode


def complete(config: DictConfig) -> None:
    """Fill in the derived values: lengths in tokens, kernels, the weights' buffer, which Ray, the paths of files."""
    complete_kernels(config.actor_rollout_ref.model)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    actor.ppo_max_token_len_per_gpu = token_budget(config)
    rollout.max_model_len = rollout.max_model_len or sequence_tokens(config)
    folder = local_folder(config.actor_rollout_ref.model.path, MODEL_KEY)
    model = read_model_facts(folder, MODEL_KEY) if folder else None
    rollout.checkpoint_engine.update_weights_bucket_megabytes = bucket_megabytes(model, config)
    ray_init = config.ray_kwargs.ray_init
    ray_init.num_cpus = ray_init.num_cpus or own_cpus(config, len(os.sched_getaffinity(0)))
    for key, value in ray_init_settings(configured_ray(config), os.environ).items():
        OmegaConf.update(ray_init, key, value, force_add=True)
    config.search.reward = absolute(config.search.reward)
    prompt = choose_prompt(config.search.prompt_template_name, config.search.prompt_file)
    config.search.prompt_file = str(prompt.file.absolute()) if prompt.file else None
    rollout.agent.agent_loop_config_path = rollout.agent.agent_loop_config_path or str(CONFIG_DIR / "agent_loop.yaml")


def validate(config: DictConfig) -> None:
    """Upstream's own validation of the completed config; raises `UserError` with its message."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    try:
        omega_conf_to_dataclass(config.actor_rollout_ref.rollout)  # upstream does so in each worker
        validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    except (AssertionError, ValueError, HydraException, OmegaConfBaseException) as error:
        raise UserError(f"verl refuses the training config: {' '.join(str(error).split())}") from error


def run(config: DictConfig) -> int:
    """Train; returns the exit code. Prints an error, and notes it in the run's folder for the starting program."""
    try:
        train(config)
    except ReSearchError as error:
        if isinstance(error, TrainingFailed):
            traceback.print_exception(error)
        # Ray may have forwarded half a line to this stream.
        print(f"\nerror: {error}", file=sys.stderr)
        write_end(Path(config.trainer.default_local_dir), error)
        return error.exit_code
    return 0


@hydra.main(config_path="config", config_name="research", version_base=None)
def run_composed(config: DictConfig) -> None:
    """Check how Hydra composed the config, and train. Ends by itself, because Hydra adds lines to an exception."""
    refused = 0
    settle(config)
    if not os.environ.get(EXAMINED_VARIABLE):
        started = HydraConfig.get()
        overrides = OmegaConf.to_container(started.overrides.task, resolve=False)
        refused = exit_on_user_error(check_composed)(config, started.job.config_name, overrides)
    sys.exit(refused or run(config))


@exit_on_user_error
def main() -> None:
    """Let Hydra compose the config of the command line; its own flags work too (--cfg job), except --multirun."""
    collect_rarely()
    check_command_line(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints an error over several lines and exits with code 1
    register_with_hydra()
    with in_one_line():
        run_composed()


if __name__ == "__main__":
    sys.exit(main())
