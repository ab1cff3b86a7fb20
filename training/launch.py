"""The published training command line, translated to verl's configuration. `training/run.sh` runs this.

The wandb key is never an argument here: run.sh moves it into the environment.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf

from flashrag.errors import UserError, exit_on_user_error
from flashrag.preflight import CHECK_HELP, enforce, keep_torch_out_of_a_check, show_check
from flashrag.system.arguments import CommandParser, boolean
from flashrag.system.machine import torch_cuda
from training.recipe import Recipe, all_recipes, chosen_recipe, read_recipe
from verl_search.composition import CONFIG_DIR, check_settings, compose_config, quoted


class Flag(NamedTuple):
    """A published flag, as flags.yaml gives it: the key that it sets, its meaning, the kind or unit of its value."""

    key: str
    meaning: str
    metavar: str | None = None


DESCRIPTION = """Train a model to search.

A flag that is not given keeps the value of the config. The defaults below are those of the published config
(verl/verl_search/config/research.yaml). The config cpu, for a machine without a GPU, trains with one process.

A recipe (docs/recipes.md) gives the flags and settings of a run, a published one or one sized for fewer GPUs; those
that you give override it."""
EPILOG = """Any other setting, of verl or of ReSearch, can follow as key=value, for example search.top_n=3.

Without any argument the embedded demo runs; its own options: bash training/run.sh --demo --help"""
CONFIG_NAMES = ("research", "cpu")
FLAGS_BY_GROUP: dict[str, dict[str, Flag]] = {
    title: {name: Flag(**flag) for name, flag in flags.items()}
    for title, flags in yaml.safe_load(Path(__file__).with_name("flags.yaml").read_text(encoding="utf-8")).items()
}
FLAGS = {name: flag for group in FLAGS_BY_GROUP.values() for name, flag in group.items()}
REWARD_MANAGERS = {"qa": "em", "qa_f1": "f1"}


def make_parser() -> CommandParser:
    """The published flags; the kind and the default of each are those of its key in config/research.yaml."""
    published = OmegaConf.load(CONFIG_DIR / "research.yaml")
    parser = CommandParser(prog="training/run.sh", description=DESCRIPTION, epilog=EPILOG)
    for title, flags in FLAGS_BY_GROUP.items():
        group = parser.add_argument_group(title)
        for name, flag in flags.items():
            if title == "needed":
                group.add_argument(f"--{name}", required=True, help=flag.meaning, metavar=flag.metavar)
                continue
            default = OmegaConf.select(published, flag.key)
            kind: Any = boolean if isinstance(default, bool) else str if default is None else type(default)
            choices = tuple(REWARD_MANAGERS) if name == "reward_manager" else None
            default = {"em": "qa"}.get(default, default)
            text = f"{flag.meaning} (default: {'none' if default is None else default})"
            group.add_argument(f"--{name}", type=kind, choices=choices, help=text, metavar=flag.metavar)
    rest = parser.add_argument_group("configuration and keys")
    rest.add_argument("--config_name", choices=CONFIG_NAMES, help="default: research on the GPU stack, else cpu")
    text = "a run by its name; help lists them (default: none)"
    rest.add_argument("--recipe", metavar="NAME", nargs="?", const="help", help=text)
    rest.add_argument("--check", action="store_true", help=CHECK_HELP)
    rest.add_argument("--wandb_api_key", metavar="KEY", help="default: that in WANDB_API_KEY; offline without a key")
    return parser


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags and the trailing key=value overrides, the recipe's first; raises `UserError` for anything else."""
    parser = make_parser()
    name = chosen_recipe(argv)
    recipe = () if name is None else read_recipe(name).words()
    flags, rest = parser.parse_known_args([*recipe, *argv])
    check_settings(rest, parser.nearest_flag)
    for word in rest:
        if (name := word.partition("=")[0]) in FLAGS:
            raise UserError(f"unknown setting {word!r}; did you mean the flag --{name}, or {FLAGS[name].key}=…?")
    if flags.wandb_api_key:
        raise UserError("--wandb_api_key reached Python; start through training/run.sh or export WANDB_API_KEY")
    return flags, rest


def hydra_overrides(flags: argparse.Namespace) -> list[str]:
    """The overrides for the given flags."""
    given = {flag.key: getattr(flags, name) for name, flag in FLAGS.items() if getattr(flags, name) is not None}
    if flags.reward_manager is not None:
        given[FLAGS["reward_manager"].key] = REWARD_MANAGERS[flags.reward_manager]
    overrides = [f"{key}={quoted(value)}" for key, value in given.items()]
    if "${" in flags.save_path:  # Hydra would take it for a reference once more, so it writes nothing
        return [*overrides, "hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    return [*overrides, f"hydra.run.dir={quoted(str(Path(flags.save_path) / 'hydra'))}"]


def composed(flags: argparse.Namespace, extra: Sequence[str]) -> tuple[str, list[str], DictConfig]:
    """The name of the config, the overrides for flags and settings, and what they make of it."""
    config_name = flags.config_name or ("research" if torch_cuda() else "cpu")
    overrides = [*hydra_overrides(flags), *extra]
    return config_name, overrides, compose_config(config_name, overrides)


def is_whole_path(recipe: Recipe, argv: Sequence[str]) -> bool:
    """Whether a recipe makes all that its training needs: it has stages, and no model to train is given."""
    return bool(recipe.stages) and not any(word.partition("=")[0] == "--actor_model_path" for word in argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if (name := chosen_recipe(argv)) == "help":
        print(*(recipe.line for recipe in all_recipes().values()), sep="\n")
        return 0
    if name is not None and is_whole_path(recipe := read_recipe(name), argv):
        from training.stages import whole_path

        print(recipe.summary)
        return whole_path(recipe, argv, lambda words: composed(*parse_flags(words))[2])
    flags, extra = parse_flags(argv)
    if name is not None:
        print(read_recipe(name).summary)
    config_name, overrides, config = composed(flags, extra)
    from verl_search.preflight.facts import TrainingFacts
    from verl_search.preflight.rules import preflight

    facts = TrainingFacts(config, config_name)
    findings = preflight(facts)
    if flags.check:
        from verl_search.preflight.plan import TRAINING_PLAN

        return show_check(TRAINING_PLAN, facts, findings)
    enforce(findings, facts.save_path)
    from flashrag.system.processes import run_guarded
    from training.failure import what_a_repeat_does
    from training.trainer_process import run_trainer

    save_path = Path(flags.save_path)
    # On a CPU the training processes share the cores, and each takes turns with its engine.
    threads = max(1, facts.machine.cores // config.trainer.n_gpus_per_node) if config.trainer.device == "cpu" else 1
    run_guarded(
        lambda: run_trainer(config_name, overrides, save_path, facts.total_steps, threads=threads, examined=True),
        resume_hint=lambda: what_a_repeat_does(save_path),
    )
    print(f"done: checkpoints, metrics and trajectories are in {save_path}")
    return 0


if __name__ == "__main__":
    keep_torch_out_of_a_check(sys.argv)
    sys.exit(main())
