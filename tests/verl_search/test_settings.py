"""The shipped training configs: they compose, verl accepts them, and the full run holds the published values."""

import importlib
import json
from pathlib import Path

import pandas
import pytest
from omegaconf import OmegaConf

from flashrag.errors import UserError
from flashrag.preflight import PreflightFailed
from flashrag.system.engine import CACHE_BLOCK_TOKENS, ONE_PROCESS_EXECUTOR
from tests.verl_search.composing import composed
from training.launch import FLAGS
from training.recipe import all_recipes, read_recipe
from verl_search.composition import CONFIG_DIR
from verl_search.main_ppo import check_input, complete, run, validate
from verl_search.settings import SearchSettings
from verl_search.trainer.run_folder import read_end

BASE_MODEL = Path(__file__).parents[2] / "training" / "demo" / "base_model"
INPUT = [
    "search.url=http://127.0.0.1:8000",
    "data.train_files=train.parquet",
    "data.val_files=test.parquet",
    "actor_rollout_ref.model.path=model",
    "trainer.default_local_dir=checkpoints",
]

PUBLISHED = {
    "data.prompt_key": "question",
    "data.train_batch_size": 256,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 256,
    "data.max_prompt_length": 512,
    "data.max_response_length": 8192,
    "search.apply_chat": False,
    "search.prompt_template_name": "qa_template",
    "search.answer_metric": "em",
    "search.top_n": 5,
    "actor_rollout_ref.rollout.n": 5,
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 8,
    "trainer.save_freq": 10,
    "trainer.test_freq": 10,
    "trainer.total_epochs": 10,
    "trainer.val_before_train": True,
    "algorithm.adv_estimator": "grpo",
    "algorithm.use_kl_in_reward": False,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.use_kl_loss": True,
    "actor_rollout_ref.actor.kl_loss_coef": 0.001,
    "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
    "actor_rollout_ref.actor.clip_ratio": 0.2,
    "actor_rollout_ref.actor.use_dynamic_bsz": True,
    "actor_rollout_ref.model.enable_gradient_checkpointing": True,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 2,
    "actor_rollout_ref.rollout.gpu_memory_utilization": 0.6,
}


def test_full_run_holds_the_published_values() -> None:
    published = composed("research", *INPUT)
    assert {key: OmegaConf.select(published, key) for key in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", ["research", "cpu", "demo"])
@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_config_passes_verls_own_validation(name: str, tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen2"}')
    config = composed(name, *INPUT, f"actor_rollout_ref.model.path={model}")
    complete(config)
    validate(config)
    SearchSettings.from_config(config.search)


@pytest.mark.parametrize("name", [name for name, recipe in all_recipes().items() if not recipe.absent])
@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_the_config_of_a_recipe_passes_verls_own_validation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if read_recipe(name).flags.get("nnodes", 1) > 1:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    settings = [f"{key}={json.dumps(value)}" for key, value in read_recipe(name).settings.items()]
    flags = {FLAGS[flag].key: value for flag, value in read_recipe(name).flags.items() if flag != "reward_manager"}
    config = composed("research", *settings, *(f"{key}={json.dumps(value)}" for key, value in flags.items()))
    config.actor_rollout_ref.model.path = str(BASE_MODEL)  # a critic's config is read whole, with its tokenizer
    complete(config)
    validate(config)


def test_lengths_follow_the_published_ones() -> None:
    config = composed("research", *INPUT)
    complete(config)
    assert config.actor_rollout_ref.rollout.max_model_len == 512 + 8192
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu == 2 * (512 + 8192)
    assert config.actor_rollout_ref.rollout.agent.agent_loop_config_path.endswith("agent_loop.yaml")


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_ray_is_started_with_what_its_processes_reserve(processes: int) -> None:
    config = composed("cpu", *INPUT, f"trainer.n_gpus_per_node={processes}")
    complete(config)
    # verl asks Ray for 3 CPUs and one "GPU" slot per training process; a missing one would be waited for without end.
    assert config.ray_kwargs.ray_init.num_gpus == processes
    assert config.ray_kwargs.ray_init.num_cpus >= 3 * processes + 4


def test_a_cpu_machine_trains_with_one_process_unless_told_otherwise() -> None:
    assert composed("cpu", *INPUT).trainer.n_gpus_per_node == 1


def test_every_shipped_training_config_is_covered() -> None:
    shipped = {path.stem for path in CONFIG_DIR.glob("*.yaml")}
    # The last two are composed by tests/training/warm_start.
    assert shipped == {"research", "cpu", "demo", "agent_loop", "alarms", "warm_start", "warm_start_cpu"}


@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_a_config_that_verl_refuses_is_a_user_error() -> None:
    config = composed("research", *INPUT, "actor_rollout_ref.actor.loss_agg_mode=nonsense")
    complete(config)
    with pytest.raises(UserError, match="verl refuses the training config"):
        validate(config)


def test_missing_values_are_named() -> None:
    with pytest.raises(PreflightFailed) as failed:
        check_input(composed("research"))
    told = [finding.message.partition(" is not set; give it as") for finding in failed.value.errors]
    missing = [key for key, told_so, _ in told if told_so]
    assert missing == ["search.url", "actor_rollout_ref.model.path", "data.train_files", "data.val_files"]


def test_the_program_that_started_the_trainer_can_read_why_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed("research", *INPUT, f"trainer.default_local_dir='{tmp_path}'")
    assert run(config) == 2
    end = read_end(tmp_path)
    assert end is not None
    assert end.exit_code == 2
    assert capsys.readouterr().err.endswith(f"\nerror: {end.reason}\n")
    assert "data.train_files=train.parquet does not exist" in end.reason
    assert [path.name for path in tmp_path.iterdir()] == ["ended.json"]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"data.train_files=train.parquet does not exist"):
        check_input(composed("research", *INPUT))


def test_a_file_that_holds_no_training_rows_is_named(tmp_path) -> None:
    text, columns = tmp_path / "text.parquet", tmp_path / "columns.parquet"
    text.write_text("no parquet")
    with pytest.raises(UserError, match=r"data.train_files=.*text.parquet is not a parquet file"):
        check_input(composed("research", *INPUT, f"data.train_files={text}"))
    pandas.DataFrame({"question": ["Who?"], "data_source": ["toy"]}).to_parquet(columns)
    with pytest.raises(UserError, match=r"lacks the columns \['extra_info', 'reward_model'\]"):
        check_input(composed("research", *INPUT, f"data.train_files={columns}"))


def test_forbidden_searches_are_a_limit_of_none() -> None:
    limits = {
        control: SearchSettings.from_config(composed("research", *INPUT, f"search.control={control}").search).limits(9)
        for control in ("none", "empty", "forbidden")
    }
    assert {control: limit.max_searches for control, limit in limits.items()} == {
        "none": 16, "empty": 16, "forbidden": 0,
    }  # fmt: skip
    tools = ["search.python_tool=true", "search.prompt_template_name=qa_python_template", "search.control=forbidden"]
    with pytest.raises(UserError, match=r"search\.control=forbidden forbids the calls of all tools; set search.python"):
        SearchSettings.from_config(composed("research", *INPUT, *tools).search)


def test_a_budget_is_told_only_where_there_is_one() -> None:
    told = SearchSettings.from_config(composed("research", *INPUT, "search.tell_budget=true").search)
    assert told.limits(9).tell_budget
    assert not SearchSettings.from_config(composed("research", *INPUT).search).limits(9).tell_budget
    nothing = ["search.control=forbidden", "search.tell_budget=true"]
    with pytest.raises(UserError, match=r"search\.control=forbidden allows none; set search\.tell_budget=false"):
        SearchSettings.from_config(composed("research", *INPUT, *nothing).search)


def test_a_forced_search_is_never_trained_on() -> None:
    trained = ["search.control=forced", "search.mask_results=false"]
    with pytest.raises(UserError, match=r"did not sample, which search\.mask_results=false would train on; set search"):
        SearchSettings.from_config(composed("research", *INPUT, *trained).search)


def test_a_stale_result_needs_an_earlier_search() -> None:
    stale = ["search.control=stale", "search.max_searches=1"]
    with pytest.raises(UserError, match=r"max_searches=1 allows one search; raise it, or"):
        SearchSettings.from_config(composed("research", *INPUT, *stale).search)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.url=ftp://x", "not an http address"),
        ("search.top_n=0", "top_n: 0 was given; Input should be greater than 0"),
        ("search.prompt_template_name=other", "choose one of: qa_python_template, qa_template"),
        ("search.trajectory_keep_every=0", "trajectory_keep_every: 0 was given; Input should be greater than 0"),
        (
            "search.trajectory_keep_last=1",
            "keep_last: 1 was given; Input should be greater than or equal to 2",
        ),
        ("search.python_tool=true", "use qa_python_template, which describes the tool to the model"),
        ("search.prompt_template_name=qa_python_template", "search.python_tool=False does not go with"),
        (
            "search.control=emtpy",
            "control: 'emtpy' was given; Input should be 'none', 'empty', 'random', 'stale', 'delayed'",
        ),
        ("search.control_delay_s=0", "control_delay_s: 0 was given; Input should be greater than 0"),
        ("search.answer_metric=bleu", "answer_metric: 'bleu' was given; Input should be 'em' or 'f1'"),
        ("+search.topn=3", "search group of the training config: unknown key 'topn'; did you mean 'top_n'"),
        (
            "search.reward_rule=format",
            "'format' was given; Input should be 'format_and_answer', 'answer' or 'structured_answer'",
        ),
        (
            "search.reward=my_reward.py",
            "reward: 'my_reward.py' was given; expected FILE:FUNCTION, such as my_reward.py:r",
        ),
        ("search.reward={}", "reward: .* was given; expected FILE:FUNCTION"),
        ("search.reward={ef: 1}", "'ef' is not a term; choose from em, f1"),
        ("search.reward=/nowhere/my_reward.py:reward", "the reward's file /nowhere/my_reward.py does not exist"),
        ("search.reward={judge: 1}", "search.reward has the term judge, but search.judge is not set; give it a model"),
        ("search.judge={model: gpt, ur: x}", "unknown key 'judge.ur'; did you mean 'url'?"),
        ("search.judge={model: gpt, url: ftp://x}", "judge.url='ftp://x' is not an http address"),
        ("search.max_outage_s=0", "max_outage_s: 0 was given; Input should be greater than 0"),
        ("search.episode_timeout_s=-1", "episode_timeout_s: -1 was given; Input should be greater than 0"),
        ("trainer.v1.trainer_mode=colocate_async", "search rollouts are trained on in mode sync only"),
        ("actor_rollout_ref.rollout.name=hf", "rollout.name=hf: expected one of vllm, sglang"),
        ("actor_rollout_ref.rollout.name=sglang", "set actor_rollout_ref.rollout.skip_tokenizer_init=false"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_starts(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_input(composed("research", *INPUT, override))


def test_the_path_of_a_reward_or_a_prompt_holds_for_processes_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("user: '{question}'\n")
    config = composed("research", *INPUT, "search.reward='my_reward.py:reward'", "search.prompt_file=mine.yaml")
    complete(config)
    assert config.search.reward == f"{tmp_path}/my_reward.py:reward"
    assert config.search.prompt_file == config.data.prompt_file == f"{tmp_path}/mine.yaml"


def test_the_engine_for_cpus_is_the_same_in_training_and_in_serving() -> None:
    engine = composed("cpu", *INPUT).actor_rollout_ref.rollout.engine_kwargs.vllm
    assert (engine.distributed_executor_backend, engine.block_size) == (ONE_PROCESS_EXECUTOR, CACHE_BLOCK_TOKENS)


@pytest.mark.parametrize("name", ["research", "cpu", "demo"])
def test_what_a_config_names_in_our_package_is_there(name: str) -> None:
    config = composed(name, *INPUT)
    sampler, loops = config.trainer.v1.sampler.custom_sampler, OmegaConf.load(CONFIG_DIR / "agent_loop.yaml")
    named = [(config.data.custom_cls.path, config.data.custom_cls.name), (sampler.path, sampler.name)]
    named += [tuple(loop["_target_"].rsplit(".", 1)) for loop in loops]
    imported = "keep_fused_head_in_root_unit" if name == "research" else "CPUEngineWithLMHead"
    named.append((config.actor_rollout_ref.model.external_lib, imported))
    for module, attribute in named:
        assert hasattr(importlib.import_module(module.removeprefix("pkg://")), attribute), module
