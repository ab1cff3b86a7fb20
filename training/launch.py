"""The published training command line, translated to verl's configuration: what `training/run.sh` runs.

A flag that is not given keeps the value of the config (verl/verl_search/config/research.yaml holds the published
ones; cpu.yaml is the same for a machine without an accelerator). Anything else of verl's can follow as key=value.
The wandb key never is an argument here: run.sh moves it into the environment.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flashrag.errors import UserError, did_you_mean, exit_on_user_error
from flashrag.system.arguments import CommandParser
from flashrag.system.machine import count_gpus

# Published flag -> the keys that it sets.
KEYS_BY_FLAG = {
    "prompt_key": ("data.prompt_key",),
    "train_batch_size": ("data.train_batch_size",),
    "ppo_mini_batch_size": ("actor_rollout_ref.actor.ppo_mini_batch_size",),
    "max_prompt_length": ("data.max_prompt_length",),
    "max_response_length": ("data.max_response_length",),
    "apply_chat": ("search.apply_chat",),
    "prompt_template_name": ("search.prompt_template_name",),
    "reward_manager": ("search.answer_metric",),
    "rollout_n": ("actor_rollout_ref.rollout.n",),
    "search_url": ("search.url",),
    "project_name": ("trainer.project_name",),
    "experiment_name": ("trainer.experiment_name",),
    "nnodes": ("trainer.nnodes",),
    "n_gpus_per_node": ("trainer.n_gpus_per_node",),
    "save_freq": ("trainer.save_freq",),
    "test_freq": ("trainer.test_freq",),
    "total_epochs": ("trainer.total_epochs",),
    "save_path": ("trainer.default_local_dir",),
    "train_data_path": ("data.train_files",),
    "dev_data_path": ("data.val_files",),
    "actor_model_path": ("actor_rollout_ref.model.path",),
}
INTEGER_FLAGS = {
    *("train_batch_size", "ppo_mini_batch_size", "max_prompt_length", "max_response_length", "rollout_n"),
    *("nnodes", "n_gpus_per_node", "save_freq", "test_freq", "total_epochs"),
}
REQUIRED_FLAGS = ("actor_model_path", "search_url", "train_data_path", "dev_data_path", "save_path")
REWARD_MANAGERS = {"qa": "em", "qa_f1": "f1"}


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags and the trailing key=value overrides; raises `UserError` for anything else, with a suggestion."""
    parser = CommandParser(prog="training/run.sh", description=__doc__)
    for flag, keys in KEYS_BY_FLAG.items():
        kind = int if flag in INTEGER_FLAGS else _boolean if flag == "apply_chat" else str
        parser.add_argument(f"--{flag}", type=kind, help=f"sets {', '.join(keys)}")
    parser.add_argument("--wandb_api_key", metavar="KEY", help="taken by run.sh; better: export WANDB_API_KEY")
    parser.add_argument("--config_name", help="research (GPUs) or cpu; default: what this machine is")
    flags, rest = parser.parse_known_args(argv)
    for word in rest:
        if word.startswith("-") or "=" not in word:
            near = did_you_mean(word.split("=")[0], [f"--{flag}" for flag in KEYS_BY_FLAG])
            hint = near or "; --help lists the flags, overrides are key=value"
            raise UserError(f"unknown argument {word!r}{hint}")
    if flags.wandb_api_key:
        raise UserError("--wandb_api_key reached Python; start through training/run.sh or export WANDB_API_KEY")
    missing = [f"--{flag}" for flag in REQUIRED_FLAGS if getattr(flags, flag) is None]
    if missing:
        raise UserError(f"missing {', '.join(missing)}; without any argument the embedded demo runs")
    if flags.reward_manager is not None and flags.reward_manager not in REWARD_MANAGERS:
        raise UserError(f"--reward_manager {flags.reward_manager} is not one of {', '.join(REWARD_MANAGERS)}")
    return flags, rest


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def hydra_overrides(flags: argparse.Namespace) -> list[str]:
    """The overrides that the given flags mean."""
    overrides = []
    for flag, keys in KEYS_BY_FLAG.items():
        value = getattr(flags, flag)
        if value is None:
            continue
        value = REWARD_MANAGERS[value] if flag == "reward_manager" else value
        overrides += [f"{key}={_quoted(value)}" for key in keys]
    return [*overrides, f"hydra.run.dir={_quoted(str(Path(flags.save_path) / 'hydra'))}"]


def _quoted(value: object) -> str:
    """A value as Hydra's grammar wants it: paths and addresses may hold characters that it would read."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return str(value).lower() if isinstance(value, bool) else str(value)


def detect_config_name() -> str:
    """research where a GPU answers, cpu elsewhere."""
    return "research" if count_gpus() else "cpu"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    flags, extra = parse_flags(sys.argv[1:] if argv is None else argv)
    config_name = flags.config_name or detect_config_name()
    overrides = [*hydra_overrides(flags), *extra]
    from verl_search.main_ppo import check_input
    from verl_search.settings import compose_config

    config = compose_config(config_name, [o for o in overrides if not o.startswith("hydra.")])
    check_input(config)
    from flashrag.system.processes import run_guarded
    from training.trainer_process import run_trainer

    save_path = Path(flags.save_path)
    run_guarded(
        lambda: run_trainer(config_name, overrides, save_path, config.trainer.total_training_steps),
        resume_hint="the same command resumes from the last checkpoint",
    )
    print(f"done: checkpoints, metrics and trajectories are in {save_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
