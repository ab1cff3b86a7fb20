"""The list of verl's settings that a search rollout does not honour: it holds, and it knows every key."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from flashrag.preflight import Severity
from tests.verl_search.composing import composed
from verl_search.composition import compose_config, leaves
from verl_search.preflight.upstream_settings import (
    DEFAULTS,
    settings_without_effect,
    unhonoured_settings,
    upstream_defaults,
)

HEAD = (
    "# verl's config (ppo_trainer.yaml, composed) by dotted keys; a test compares it with that of the installed verl.\n"
)


def installed_defaults() -> dict[str, Any]:
    return leaves(OmegaConf.to_container(compose_config("ppo_trainer", []), resolve=False))


def test_every_key_of_verls_config_has_been_read(tmp_path: Path) -> None:
    installed, read = installed_defaults(), upstream_defaults()
    new, gone = sorted(installed.keys() - read.keys()), sorted(read.keys() - installed.keys())
    moved = {key: (read[key], installed[key]) for key in installed.keys() & read.keys() if read[key] != installed[key]}
    written = tmp_path / DEFAULTS.name
    written.write_text(HEAD + yaml.safe_dump(installed, width=1000, default_flow_style=None), encoding="utf-8")
    assert (new, gone, moved) == ([], [], {}), (
        "verl's config has moved. For each key: read whether our path honours it (verl/verl_search, and verl's "
        "trainer/ppo/v1 with its agent loop), put it into upstream_settings.yaml if it does not, and then: "
        f"cp {written} {DEFAULTS}"
    )
    assert written.read_text(encoding="utf-8") == DEFAULTS.read_text(encoding="utf-8")


def test_every_listed_key_is_one_of_verls() -> None:
    from verl.workers.config import RolloutConfig

    beside_the_config = {f"actor_rollout_ref.rollout.{field.name}" for field in dataclasses.fields(RolloutConfig)}
    known = {*upstream_defaults(), *beside_the_config}
    listed = [key for entry in unhonoured_settings() for key in entry.keys]
    assert [key for key in listed if not any(own == key or own.startswith(f"{key}.") for own in known)] == []
    assert len(listed) == len(set(listed))
    conditions = {key for entry in unhonoured_settings() for key in entry.unless}
    assert conditions <= set(leaves(OmegaConf.to_container(composed("research"), resolve=False)))


@pytest.mark.parametrize("name", ["research", "cpu", "demo"])
def test_our_own_configs_go_against_no_entry(name: str) -> None:
    assert list(settings_without_effect(composed(name))) == []


@pytest.mark.parametrize(
    ("overrides", "severity", "message"),
    [
        (
            ["reward.custom_reward_function.path=r.py"],
            "error",
            "so verl's function is not called; give your own with --reward FILE:FUNCTION (search.reward",
        ),
        (["custom_reward_function.path=r.py"], "error", "custom_reward_function.path=r.py: an episode is rewarded"),
        (["reward.reward_model.enable=true"], "error", "would replace the reward of an episode"),
        (
            ["reward_model.reward_manager=dapo"],
            "error",
            "reward_model.reward_manager=dapo: a reward model is not asked",
        ),
        (
            ["reward.reward_manager.name=dapo"],
            "error",
            "choose search.answer_metric (--reward_manager), search.reward_rule",
        ),
        (
            ["critic.optim.lr=1"],
            "warning",
            "critic.optim.lr=1: there is a critic with algorithm.adv_estimator=gae only",
        ),
        (["critic.optim.lr=1", "algorithm.adv_estimator=gae"], None, ""),
        (["trainer.max_critic_ckpt_to_keep=2"], "warning", "set trainer.max_actor_ckpt_to_keep"),
        (["trainer.max_actor_ckpt_to_keep=2"], None, ""),
        (["critic.enable=true"], "error", "critic.enable=True: the estimator gae has a critic, and for any other"),
        (["critic.rollout_n=4"], "error", "set actor_rollout_ref.rollout.n (--rollout_n)"),
        (["critic.ppo_micro_batch_size_per_gpu=4"], "warning", "filled by tokens (critic.ppo_infer_max_token_len_per"),
        (["algorithm.gamma=0.9"], "warning", "the estimators gae and reinforce_plus_plus use it, and no other"),
        (["algorithm.gamma=0.9", "algorithm.adv_estimator=reinforce_plus_plus"], None, ""),
        (["algorithm.lam=0.9", "algorithm.adv_estimator=reinforce_plus_plus"], "warning", "the estimator gae uses it"),
        (["algorithm.lam=0.9", "algorithm.adv_estimator=gae"], None, ""),
        (["algorithm.use_pf_ppo=true", "algorithm.adv_estimator=gae"], "error", "it draws episodes anew"),
        (["algorithm.norm_adv_by_std_in_grpo=false", "algorithm.adv_estimator=rloo"], "warning", "grpo and grpo_passk"),
        (["algorithm.norm_adv_by_std_in_grpo=false"], None, ""),
        (["algorithm.rollout_correction.loss_type=reinforce"], "error", "policy_loss.loss_mode=bypass_mode and"),
        (["data.custom_cls.name=MyDataset"], "error", "rollouts need the rows of QuestionDataset"),
        (["data.tool_config_path=tools.yaml"], "error", "search and search.python_tool as its tools"),
        (["actor_rollout_ref.rollout.multi_turn.max_assistant_turns=4"], "error", "its bounds are search.max_searches"),
        (["+data.apply_chat_template_kwargs.enable_thinking=false"], "error", "enable_thinking=False: the prompt is"),
        (["+actor_rollout_ref.rollout.repetition_penalty=1.1"], "error", "verl's agent loops sample without one"),
        (["actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent"], "error", "another loop does not search"),
        (["actor_rollout_ref.rollout.val_kwargs.do_sample=true"], "warning", "the temperature decides"),
        (["actor_rollout_ref.actor.rollout_n=4"], "error", "set actor_rollout_ref.rollout.n (--rollout_n)"),
        (["actor_rollout_ref.actor.grad_clip=0.5"], "error", "set actor_rollout_ref.actor.optim.clip_grad"),
        (["actor_rollout_ref.model.lora.rank=8"], "error", "set actor_rollout_ref.model.lora_rank"),
        (["actor_rollout_ref.model.lora.merge=true"], None, ""),
        (["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"], "warning", "micro-batches are filled by tokens"),
        (
            ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2", "actor_rollout_ref.actor.use_dynamic_bsz=false"],
            None,
            "",
        ),
        (["algorithm.kl_ctrl.kl_coef=0.1"], "warning", "the reward holds no KL penalty"),
        (["algorithm.kl_ctrl.kl_coef=0.1", "algorithm.use_kl_in_reward=true"], None, ""),
        (["trainer.v1.trainer_mode=separate_async"], "error", "search rollouts are trained on in mode sync only"),
        (["trainer.v1.sampler.max_off_policy_threshold=2"], "warning", "it belongs to an asynchronous mode"),
        (["trainer.critic_warmup=5"], "error", "the model would not be trained in these steps"),
        (["trainer.critic_warmup=5", "algorithm.adv_estimator=gae"], None, ""),
        (["trainer.default_hdfs_dir=hdfs://x"], "error", "checkpoints are not copied there"),
        (["trainer.balance_batch=false"], "warning", "this trainer of verl does not read it"),
        (["skip.rollout_tq.enable=true"], "error", "trained on stored rollouts of other weights"),
        (["skip.rollout.enable=true"], "warning", "does not read it"),
        (
            ["actor_rollout_ref.hybrid_engine=${algorithm.use_kl_in_reward}"],
            "warning",
            "hybrid_engine=False: engine and",
        ),
        (["data.seed=1", "data.shuffle=false", "trainer.rollout_data_dir=x"], None, ""),
        (["algorithm.filter_groups.enable=true", "algorithm.filter_groups.max_inflight_gen_batches=2"], None, ""),
    ],
)
def test_a_setting_that_is_not_honoured_is_told(overrides: list[str], severity: str | None, message: str) -> None:
    found = list(settings_without_effect(composed("research", *overrides)))
    assert [finding.severity for finding in found] == ([Severity(severity)] if severity else [])
    assert all(message in finding.message for finding in found)


def test_one_entry_is_told_once_with_all_its_keys() -> None:
    overrides = ["skip.rollout_tq.enable=true", "skip.rollout_tq.action=dump"]
    (finding,) = settings_without_effect(composed("research", *overrides))
    assert finding.message.startswith("skip.rollout_tq.enable=True, skip.rollout_tq.action=dump: a step")
