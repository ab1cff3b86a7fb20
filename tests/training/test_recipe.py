"""Every recipe: each of its values against the published one, with its source beside it, and what a run makes of it.

A recipe that is sized here differs from the pilot's in what SIZED names.
"""

import functools
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from flashrag.errors import UserError
from flashrag.generator import ModelFacts
from flashrag.preflight import examine
from tests.verl_search.preflight.test_memory import QWEN
from training.launch import FLAGS, REWARD_MANAGERS, hydra_overrides, main, parse_flags
from training.recipe import FOLDER, Recipe, all_recipes, read_recipe
from verl_search.composition import compose_config
from verl_search.preflight.facts import TrainingFacts
from verl_search.preflight.memory import lacking_bytes
from verl_search.preflight.plan import TRAINING_PLAN
from verl_search.preflight.settings_rules import SETTINGS_RULES
from verl_search.settings import SearchSettings

PATHS = {"actor_model_path", "search_url", "train_data_path", "dev_data_path", "save_path", "experiment_name"}
ACTOR, REF, ROLLOUT, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "ref", "rollout", "model"))
STAGED = {"smollm2-nq"}  # with the whole path in stages, ours alone: test_stages.py
RECIPES = [name for name, recipe in all_recipes().items() if not recipe.absent and name not in STAGED]
ABSENT = {"asearcher-local", "recall"}

# Published values, by the file that they were read in; under "ours" what no file of theirs says, with the reason.
# Agent-RL/ReCall at 12f6cb1 (2025-03-03), the pilot.
PILOT_RUN_SH = {
    "prompt_key": "question",
    "train_batch_size": 256,
    "ppo_mini_batch_size": 256,
    "max_prompt_length": 512,
    "max_response_length": 8192,
    "apply_chat": False,
    "prompt_template_name": "qa_template",
    "reward_manager": "qa",
    "rollout_n": 5,
    "nnodes": 1,
    "n_gpus_per_node": 8,
    "save_freq": 10,
    "test_freq": 10,
    "total_epochs": 10,
    f"{ACTOR}.optim.lr": 1e-6,
    f"{ACTOR}.use_kl_loss": True,
    f"{ACTOR}.kl_loss_coef": 0.001,
    f"{ACTOR}.kl_loss_type": "low_var_kl",
    f"{ROLLOUT}.tensor_model_parallel_size": 2,
    f"{ROLLOUT}.gpu_memory_utilization": 0.6,
    "trainer.val_before_train": True,
}
PILOT_DEFAULTS = {  # verl/verl/trainer/config/ppo_trainer.yaml; the same in src/verl of the branch re-search
    f"{ACTOR}.clip_ratio": 0.2,
    f"{ACTOR}.entropy_coeff": 0.001,
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.top_p": 1,
}
PILOT_ROLLOUT = {"search.top_n": 5}  # verl/verl/workers/rollout/vllm_rollout/vllm_rollout.py: data = {"top_n": 5}
PILOT = {**PILOT_RUN_SH, **PILOT_DEFAULTS, **PILOT_ROLLOUT}
# Agent-RL/ReCall at 4bdb872 (branch re-search): scripts/train/train_multi_node.sh, and its README for the two models.
# Table 4 of arXiv 2503.19470 agrees: lr 1e-6, batch 256, 2 epochs, 5 rollouts, temperature 1.0, KL 0.001, clip 0.2; so
# do "8 x 8 Nvidia H800 GPUs" and "top-5 results" (appendix B, section 3.1).
PAPER = {
    **PILOT,
    "nnodes": 8,
    "total_epochs": 2,
    "reward_manager": "qa_f1",  # src/verl/utils/reward_score/re_search.py: F1, and 0.1 for the format alone
}
# PeterGriffinJin/Search-R1 at a14dc3a: scripts/nq_hotpotqa/v0.2/train_grpo.sh; appendix B of arXiv 2503.09516v5 agrees
# on batch 512/256, lr 1e-6, warm-up 0.285, n 5, KL 0.001, clip 0.2, TP 1, 0.6, 500 tokens a result, 4 turns, top 3.
SEARCH_R1_SCRIPT = {
    "train_batch_size": 512,
    "ppo_mini_batch_size": 256,
    "max_prompt_length": 2048,  # data.max_start_length
    "max_response_length": 4096,  # data.max_prompt_length, to which search_r1/llm_agent/generation.py cuts a response
    "rollout_n": 5,  # actor_rollout_ref.rollout.n_agent
    "nnodes": 1,
    "n_gpus_per_node": 8,
    "save_freq": 100,
    "test_freq": 100,
    "total_epochs": 15,
    f"{ACTOR}.optim.lr": 1e-6,
    f"{ACTOR}.optim.lr_warmup_steps_ratio": 0.285,
    f"{ACTOR}.use_kl_loss": True,
    f"{ACTOR}.kl_loss_coef": 0.001,
    f"{ACTOR}.kl_loss_type": "low_var_kl",
    f"{ACTOR}.fsdp_config.param_offload": True,
    f"{ACTOR}.fsdp_config.optimizer_offload": True,
    f"{REF}.fsdp_config.param_offload": True,
    f"{ROLLOUT}.temperature": 1,
    f"{ROLLOUT}.tensor_model_parallel_size": 1,
    f"{ROLLOUT}.gpu_memory_utilization": 0.6,
    "search.top_n": 3,  # retriever.topk
    "search.max_searches": 4,  # max_turns: as many turns with a search, and one without
    "search.max_result_tokens": 500,  # data.max_obs_length
    "trainer.total_training_steps": 1005,
    "trainer.val_before_train": True,
}
SEARCH_R1_DEFAULTS = {
    f"{ACTOR}.clip_ratio": 0.2,
    f"{ACTOR}.entropy_coeff": 0.001,
}  # verl/trainer/config/ppo_trainer.yaml
SEARCH_R1_CODE = {
    "apply_chat": True,  # verl/utils/dataset/rl_dataset.py: if the tokenizer has a chat template, and Qwen2.5's has one
    "prompt_template_name": "search_r1",  # scripts/data_process/qa_search_train_merge.py: make_prefix
    "reward_manager": "qa",  # verl/utils/reward_score/qa_em.py
    "search.reward_rule": "answer",  # the same: 1 for a right answer, format_score=0 for any other
}
SEARCH_R1_PAPER = {f"{ROLLOUT}.top_p": 1.0}  # appendix B; the script leaves it at 0.95 of its ppo_trainer.yaml
SEARCH_R1 = {**SEARCH_R1_SCRIPT, **SEARCH_R1_DEFAULTS, **SEARCH_R1_CODE, **SEARCH_R1_PAPER}
# The same repository: scripts/nq_hotpotqa/v0.2/train_ppo.sh differs from train_grpo.sh in these. Appendix B agrees on
# lr 1e-6, of the critic 1e-5, warm-up 0.285 and 0.015, lambda = gamma = 1.
SEARCH_R1_PPO = {
    **{key: value for key, value in SEARCH_R1.items() if "kl_loss" not in key},
    f"{ACTOR}.use_kl_loss": False,  # the config's default, with which ray_trainer.py puts the KL into the reward
    "algorithm.use_kl_in_reward": True,
    "algorithm.kl_penalty": "kl",  # ppo_trainer.yaml, as gamma, lam and cliprange_value are
    "algorithm.gamma": 1.0,
    "algorithm.lam": 1.0,
    "critic.cliprange_value": 0.5,
    "algorithm.adv_estimator": "gae",
    "algorithm.kl_ctrl.kl_coef": 0.001,
    "rollout_n": 1,  # actor_rollout_ref.rollout.n_agent
    "critic.optim.lr": 1e-5,
    "critic.optim.lr_warmup_steps_ratio": 0.015,
    "critic.model.enable_gradient_checkpointing": True,
    "critic.fsdp.param_offload": True,  # critic.model.fsdp_config
    "critic.fsdp.optimizer_offload": True,
    "trainer.critic_warmup": 0,
}
# The same repository: scripts/nq_hotpotqa/v0.3/train_grpo_format.sh differs from v0.2 in these (and in the model).
SEARCH_R1_V03 = {
    **SEARCH_R1,
    f"{ACTOR}.optim.lr": 5e-7,
    "search.reward_rule": "structured_answer",  # structure_format_score=0.2 final_format_score=0.1 retrieval_score=0
}
# pytorch/torchtitan at b5bcd76, torchtitan/experiments/rl/examples/search_r1.
MODERN_REGISTRY = {  # config_registry.py: rl_grpo_qwen3_8b_search_r1, on top of rl_grpo_qwen3_1_7b_search_r1
    "train_batch_size": 8,  # num_prompts_per_train_step
    "ppo_mini_batch_size": 8,  # one step of the optimizer
    "rollout_n": 8,  # num_samples_per_prompt
    "save_freq": 50,  # checkpoint.interval
    f"{ACTOR}.optim.lr": 1e-6,
    f"{ACTOR}.optim.lr_warmup_steps": 2,  # then constant: min_lr_factor=1.0
    f"{ACTOR}.clip_ratio": 0.2,
    f"{ACTOR}.clip_ratio_low": 0.2,
    f"{ACTOR}.clip_ratio_high": 0.28,
    f"{ACTOR}.use_kl_loss": False,
    "algorithm.norm_adv_by_std_in_grpo": True,  # should_std_normalize
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.top_p": 1.0,
    f"{ROLLOUT}.tensor_model_parallel_size": 2,
    f"{ROLLOUT}.gpu_memory_utilization": 0.6,
    "trainer.total_training_steps": 500,
    "trainer.max_actor_ckpt_to_keep": 3,  # keep_latest_k
    "nnodes": 1,
    "n_gpus_per_node": 8,  # "8 GPUs"
    "trainer.val_before_train": True,  # controller.py: validation at the start and the end
}
MODERN_CODE = {
    f"{ACTOR}.optim.betas": [0.9, 0.95],  # torchtitan/components/optimizer/optimizer.py: default_adamw
    f"{ACTOR}.optim.weight_decay": 0.1,  # the same
    f"{ACTOR}.loss_agg_mode": "token-mean",  # losses/dapo.py: the sum over tokens, divided by their number
    "search.top_n": 3,  # env.py: topk
    "search.max_searches": 3,  # rollouter.py: max_num_turns=4, of which the last answers
    "max_response_length": 3072,  # rollouter.py: max_rollout_tokens
    "reward_manager": "qa",  # rubric.py: RewardExactMatch
    "search.reward_rule": "answer",  # the same: 1 for a right answer, 0 for any other
}
MODERN_OURS = {
    "prompt_template_name": "search_r1",  # theirs: native tool calls
    "apply_chat": True,
    "max_prompt_length": 512,  # theirs counts in max_rollout_tokens
    "search.max_result_tokens": 1024,  # theirs: no limit of its own
    "test_freq": 50,  # theirs: at the start and the end
    "total_epochs": 1,  # more than the 500 steps take
}
# Sized here for fewer GPUs, or more machines, than the pilot had; the other values are the pilot's.
FUSED = {f"{MODEL}.use_fused_kernels": True}
TP, SHARE = f"{ROLLOUT}.tensor_model_parallel_size", f"{ROLLOUT}.gpu_memory_utilization"


def step(questions: int, saved_every: int, epochs: int) -> dict[str, int]:
    """A step of one weight update."""
    batch = {"train_batch_size": questions, "ppo_mini_batch_size": questions, "total_epochs": epochs}
    return {**batch, "save_freq": saved_every, "test_freq": saved_every}


ONE = {**PILOT, **FUSED, **step(64, 50, 1), "n_gpus_per_node": 1, TP: 1}
SIZED = {
    "one-24gb": {**ONE, "max_response_length": 4096, SHARE: 0.5},
    "one-80gb": {**ONE, SHARE: 0.35},
    "two-80gb": {**ONE, **step(128, 25, 1), "n_gpus_per_node": 2, SHARE: 0.5},
    "four-80gb": {**PILOT, **FUSED, "n_gpus_per_node": 4, SHARE: 0.5},
    "two-nodes": {**PILOT, **FUSED, "nnodes": 2},
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    **SIZED,
    "research-pilot": PILOT,
    "research-paper": PAPER,
    "research-paper-instruct": {**PAPER, "apply_chat": True},
    "search-r1": SEARCH_R1,
    "search-r1-ppo": SEARCH_R1_PPO,
    "search-r1-v0.3": SEARCH_R1_V03,
    "modern": {**MODERN_REGISTRY, **MODERN_CODE, **MODERN_OURS},
}
MODELS = {
    "one-24gb": "models/Qwen2.5-0.5B",
    "one-80gb": "models/Qwen2.5-3B",
    "two-80gb": "models/Qwen2.5-3B",
    "four-80gb": "models/Qwen2.5-7B",
    "two-nodes": "models/Qwen2.5-7B",
    "research-pilot": "models/Qwen2.5-7B",  # the pilot's README
    "research-paper": "models/Qwen2.5-7B",  # arXiv 2503.19470, section 3.1
    "research-paper-instruct": "models/Qwen2.5-7B-Instruct",  # the same
    "search-r1": "models/Qwen2.5-7B",  # v0.2/train_grpo.sh: BASE_MODEL
    "search-r1-ppo": "models/Qwen2.5-7B",  # v0.2/train_ppo.sh: BASE_MODEL
    "search-r1-v0.3": "models/Qwen2.5-3B",  # v0.3/train_grpo_format.sh: BASE_MODEL
    "modern": "models/Qwen3-8B",  # config_registry.py
}
# The config.json of Qwen3-8B, and the parameters of its safetensors headers.
QWEN3_8B = ModelFacts("Qwen3ForCausalLM", 40_960, 32, 151_936, 8_190_735_360, 151_936 * 4096, 0, {
    "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
})  # fmt: skip
FACTS = {
    "models/Qwen2.5-0.5B": QWEN["0.5B"],
    "models/Qwen2.5-3B": QWEN["3B"],
    "models/Qwen2.5-7B": QWEN["7B"],
    "models/Qwen2.5-7B-Instruct": QWEN["7B"],
    "models/Qwen3-8B": QWEN3_8B,
}


def arguments(name: str, *more: str) -> list[str]:
    """What to type; a run on several machines needs the address of its server."""
    url = [] if "search_url" in read_recipe(name).flags else ["--search_url", "http://10.0.0.1:8000"]
    return ["--recipe", name, *url, *more]


@functools.cache
def _composed(name: str, *more: str) -> bytes:
    flags, overrides = parse_flags(arguments(name, *more))
    return pickle.dumps(compose_config("research", [*hydra_overrides(flags), *overrides]))


def composed(name: str, *more: str) -> DictConfig:
    """A copy of the config by the command's own path, which takes a second and is taken once."""
    return pickle.loads(_composed(name, *more))


def test_every_recipe_is_covered() -> None:
    assert set(RECIPES) == set(PUBLISHED) == set(MODELS)
    assert set(all_recipes()) - set(RECIPES) == ABSENT | STAGED


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_the_published_one(name: str) -> None:
    recipe = read_recipe(name)
    given = {key: value for key, value in recipe.flags.items() if key not in PATHS} | dict(recipe.settings)
    assert given == PUBLISHED[name]
    assert recipe.flags["actor_model_path"] == MODELS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_config_of_a_recipe_holds_its_values_and_passes_the_rules(name: str) -> None:
    config, recipe = composed(name), read_recipe(name)
    values = {FLAGS[flag].key: value for flag, value in recipe.flags.items()} | dict(recipe.settings)
    values["search.answer_metric"] = REWARD_MANAGERS[values["search.answer_metric"]]
    values["search.recipe"] = name
    assert {key: OmegaConf.select(config, key) for key in values} == values
    assert examine(SETTINGS_RULES, config) == []
    dialect = SearchSettings.from_config(config.search).dialect().name
    assert dialect == ("search-r1" if recipe.flags["prompt_template_name"] == "search_r1" else "research")


def gpu_bytes(name: str) -> int:
    """The memory of the GPUs that a recipe is made for; it names as many as its flags."""
    trainer = composed(name).trainer
    nodes = f"{trainer.nnodes} x " if trainer.nnodes > 1 else ""
    gpus = f"{trainer.n_gpus_per_node} GPU{'s' * (trainer.n_gpus_per_node > 1)}"
    machine = re.fullmatch(rf"{nodes}{gpus} of (\d+) GB", read_recipe(name).machine)
    assert machine, "the flags and the machine of a recipe are the same"
    return int(machine[1]) * 10**9


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_machine_on_paper(name: str) -> None:
    config, model = composed(name), FACTS[MODELS[name]]
    for flash_attn in (True, False):
        assert lacking_bytes(model, config, gpu_bytes(name), flash_attn) == 0
    assert model.attention_heads is not None
    assert model.attention_heads % config.actor_rollout_ref.rollout.tensor_model_parallel_size == 0
    assert config.data.max_prompt_length + config.data.max_response_length <= (model.positions or 0)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_has_every_part_or_says_why_it_has_none(path: Path) -> None:
    given = set(yaml.safe_load(path.read_text(encoding="utf-8")))
    parts = {"absent"} if path.stem in ABSENT else {"machine", "differs", "flags", "settings", "commands"}
    if path.stem in STAGED:
        parts = parts - {"commands"} | {"inputs", "server", "pieces", "stages"}
    assert given == {"title", "source", *parts}
    recipe = all_recipes()[path.stem]
    assert path.stem in STAGED or re.search(r"\w+/\w[\w-]* at [0-9a-f]{7}: ", recipe.source[0]), (
        "a repository at a commit"
    )
    assert set(recipe.commands) in ({"data", "server", "evaluation"}, set())
    assert not set(recipe.settings) & {flag.key for flag in FLAGS.values()}, (
        "a setting would override a flag given later"
    )


def test_flags_and_settings_of_the_command_override_the_recipe() -> None:
    config = composed("search-r1", "--rollout_n", "8", "--save_path", "elsewhere", "search.top_n=5")
    assert (config.actor_rollout_ref.rollout.n, config.search.top_n) == (8, 5)
    assert str(config.trainer.default_local_dir) == "elsewhere"
    assert config.data.train_batch_size == 512  # the recipe's
    assert composed("search-r1", "actor_rollout_ref.rollout.n=16").actor_rollout_ref.rollout.n == 16
    assert parse_flags(["--rollout_n=4", "--recipe=search-r1"])[0].rollout_n == 4, "wherever the recipe stands"


def test_the_pilot_s_recipe_is_the_published_config_but_for_the_entropy() -> None:
    needed = ["--actor_model_path", "models/Qwen2.5-7B", "--search_url", "http://127.0.0.1:8000"]
    paths = {flag: value for flag, value in read_recipe("research-pilot").flags.items() if flag in PATHS}
    words = [word for flag, value in paths.items() for word in (f"--{flag}", str(value))]
    flags, overrides = parse_flags([*needed, *words])
    default = compose_config("research", [*hydra_overrides(flags), *overrides])
    default.search.recipe, default.actor_rollout_ref.actor.entropy_coeff = "research-pilot", 0.001
    assert composed("research-pilot") == default


def test_a_recipe_on_several_machines_asks_for_the_address_of_a_server() -> None:
    with pytest.raises(UserError, match="the following arguments are required: --search_url"):
        parse_flags(["--recipe", "research-paper"])


@pytest.mark.parametrize("argv", [["--recipe", "help"], ["--recipe"], ["--recipe=help", "--rollout_n", "3"]])
def test_the_list_has_a_line_for_each_recipe(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*PUBLISHED, *ABSENT, *STAGED])
    pilot = "Qwen2.5-7B on HotpotQA by exact match, the pilot of March 2025 (8 GPUs of 80 GB)"
    assert f"research-pilot           {pilot}" in lines
    assert any(
        line.startswith("recall                   not here: its model calls functions as JSON") for line in lines
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "search-r1-v0.2",
            "--recipe 'search-r1-v0.2': no such recipe; did you mean 'search-r1-v0.3'?; --recipe help lists",
        ),
        ("", "--recipe '': no such recipe"),
        ("zzz", "--recipe 'zzz': no such recipe; --recipe help lists them"),
        ("recall", "--recipe recall is not here: its model calls functions as JSON"),
    ],
)
def test_other_names_are_refused(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_run_says_what_it_is_modelled_on_and_its_plan_names_the_recipe() -> None:
    recipe = read_recipe("search-r1")
    told = recipe.summary.splitlines()
    assert told[0] == f"recipe search-r1: {recipe.title}"
    assert told[1].startswith("  source: PeterGriffinJin/Search-R1 at a14dc3a: scripts/nq_hotpotqa/v0.2/train_grpo.sh")
    assert told[2:] == [f"  differs: {difference}" for difference in recipe.differs]
    row = TRAINING_PLAN["run"]["recipe"]
    assert row(TrainingFacts(composed("search-r1"))) == "search-r1"
    assert row(TrainingFacts(compose_config("research", []))) == "none"


def test_a_file_with_a_mistake_is_named() -> None:
    with pytest.raises(ValueError, match="sauce"):
        Recipe.model_validate({"name": "n", "title": "t", "source": ["s"], "sauce": ""})
