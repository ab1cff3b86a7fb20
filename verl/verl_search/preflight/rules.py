"""The rules of a training run over its facts, and `preflight`, which applies them all.

Rules about settings alone stand in settings_rules.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx

from flashrag.client import SearchControl, check_addresses, different_questions, server_findings
from flashrag.episode import prompt_note
from flashrag.generator import MODEL_RULES, ModelFolder, can_be_trained
from flashrag.metrics import score_answer
from flashrag.preflight import (
    MACHINE_RULES,
    Finding,
    PreflightFailed,
    Rule,
    Severity,
    error,
    examine,
    gathered,
    is_writable,
    note,
    output_folder,
    prompt_findings,
    socket_folder,
    warning,
)
from flashrag.reward import JUDGE, judge_findings, try_reward
from flashrag.system.network import is_loopback, is_this_machine
from flashrag.tools import check_sandbox
from verl_search.composition import shipped_settings
from verl_search.preflight.facts import MODEL_KEY, Asked, TrainingFacts
from verl_search.preflight.machine_rules import HARDWARE_RULES
from verl_search.preflight.settings_rules import SETTINGS_RULES
from verl_search.preflight.sizes import bucket_megabytes, checkpoint_bytes, has_critic, kept_checkpoints
from verl_search.trainer.alarm_watch import configured_rules
from verl_search.trainer.run_folder import kept_setting, last_step, noted_step

COMPARED, LONGEST_COMMON_BEGINNING = 20, 80  # questions; characters
RAY_SOCKET_NAME = 68  # bytes of "/ray/session_2026-11-26_01-46-22_123456_1234567/sockets/plasma_store"


def alarms_are_valid(facts: TrainingFacts) -> None:
    configured_rules(facts.config)


def sandbox_works(facts: TrainingFacts) -> None:
    if facts.settings.python_tool:
        check_sandbox()


def reward_works(facts: TrainingFacts) -> Iterator[Finding]:
    """The reward rewards trajectories that have the fields of training."""
    settings = facts.settings
    if settings.reward is None:
        return
    for name in ("answer_metric", "reward_rule"):
        if (given := getattr(settings, name)) != (default := shipped_settings("research")[f"search.{name}"]):
            yield error(f"search.{name}={given} has no effect beside search.reward; leave it at {default}")
    question, data_source = facts.rewarded_question
    fields = {"data_source": data_source, "split": "train", "step": 1, "group_id": "made up", "session": 0}
    judged = {JUDGE: 1.0} if settings.judge else {}
    try_reward(
        settings.reward,
        question,
        settings.dialect(),
        lambda each: {**score_answer(each.answer, each.gold_answers)._asdict(), **judged},
        weights_steps=(0, 0),
        **fields,
    )


def judge_answers(facts: TrainingFacts) -> Iterator[Finding]:
    if (judge := facts.settings.judge) is not None:
        yield from judge_findings("search.judge", judge, facts.judge_reply, absent=error)


def control_is_told(facts: TrainingFacts) -> Iterator[Finding]:
    control, told = facts.settings.control, facts.settings.tell_budget
    if control is SearchControl.RANDOM:
        different_questions(question.question for question in facts.train.questions)
    if control is not SearchControl.NONE:
        yield warning(f"search.control={control.warning}")
    if last_step(facts.save_path) is None:
        return
    for key, value, default in (("control", control, SearchControl.NONE), ("tell_budget", told, False)):
        earlier = kept_setting(facts.save_path, f"search.{key}", default)
        if earlier not in (None, value):
            yield error(
                f"search.{key}={str(value).lower()}, but the run in {facts.save_path} has "
                f"search.{key}={str(earlier).lower()} and would go on; give another save_path"
            )


def last_checkpoint_is_known(facts: TrainingFacts) -> None:
    if facts.config.trainer.resume_mode == "auto":
        noted_step(facts.save_path)


def critic_can_go_on(facts: TrainingFacts) -> Iterator[Finding]:
    trainer, step = facts.config.trainer, last_step(facts.save_path)
    checkpoint = facts.save_path / f"global_step_{step}" if trainer.resume_mode == "auto" and step is not None else None
    if trainer.resume_mode == "resume_path" and trainer.resume_from_path:
        checkpoint = Path(trainer.resume_from_path)
    if has_critic(facts.config) and checkpoint and not (checkpoint / "critic").is_dir():
        yield error(
            f"algorithm.adv_estimator=gae, but {checkpoint}, from which the run would go on, holds no critic; give "
            "another save_path, or trainer.resume_mode=disable"
        )


def ray_is_there(facts: TrainingFacts) -> Iterator[Finding]:
    nodes = facts.ray_nodes
    if facts.ray.joins:
        yield note(facts.ray.note(nodes))


def servers_answer(facts: TrainingFacts) -> Iterator[Finding]:
    settings = facts.settings
    yield from server_findings(facts.servers, settings.url, "search_url", settings.top_n, "search.top_n")


def servers_are_reached_from_each_node(facts: TrainingFacts) -> Iterator[Finding]:
    """Episodes run on all nodes of a cluster, and on each of them a loopback address is another machine."""
    if len(facts.ray_nodes) < 2:
        return
    judge = facts.settings.judge
    given = [("search_url", url) for url in check_addresses(facts.settings.url, "search_url")]
    given += [("search.judge.url", judge.url)] if judge else []
    here = next((node.address for node in facts.ray_nodes if is_this_machine(node.address)), "ADDRESS")
    for key, url in given:
        if is_loopback((parsed := httpx.URL(url)).host):
            yield error(
                f"{key}={url} is another machine on each of the {len(facts.ray_nodes)} nodes of the Ray cluster; let "
                f"the server listen for them (--host 0.0.0.0) and name this one: {parsed.copy_with(host=here)}"
            )


def wandb_is_there(facts: TrainingFacts) -> Iterator[Finding]:
    if facts.wandb.note:
        yield warning(facts.wandb.note)


def model_is_there(facts: TrainingFacts) -> None:
    assert facts.tokenizer
    assert facts.eos_ids


def model_can_be_trained(facts: TrainingFacts) -> Iterator[Finding]:
    """Of a model under a hub's name nothing is known."""
    if facts.model_folder is not None:
        rules = {**MODEL_RULES, "model.architecture": can_be_trained}
        yield from examine(rules, ModelFolder(facts.model_folder, MODEL_KEY))


def prompts_are_of_its_tokens(facts: TrainingFacts) -> Iterator[Finding]:
    vocabulary = None if facts.model is None else facts.model.vocabulary
    if vocabulary is not None and (beyond := [one for one in facts.train.first_prompt_ids if one >= vocabulary]):
        yield error(
            f"{MODEL_KEY}={facts.model_path}: its tokenizer makes the token {beyond[0]} of a prompt, but the model "
            f"takes tokens below {vocabulary} (vocab_size); take the tokenizer that belongs to this model"
        )


def training_questions(facts: TrainingFacts) -> Iterator[Finding]:
    yield from _prompts_fit(facts, "data.train_files", facts.train)
    batch = facts.config.data.train_batch_size
    if facts.train.used and not facts.steps_per_epoch:
        yield error(
            f"data.train_batch_size={batch}, but only {facts.train.used} questions of data.train_files can be used; "
            f"lower it (--train_batch_size, --ppo_mini_batch_size), or give more questions"
        )
    elif (unused := facts.train.used % batch) and facts.total_steps <= facts.steps_per_epoch:
        yield note(f"{unused} of {facts.train.used} training questions do not fill a last batch and are not used")


def validation_questions(facts: TrainingFacts) -> Iterator[Finding]:
    yield from _prompts_fit(facts, "data.val_files", facts.val)


def _prompts_fit(facts: TrainingFacts, key: str, asked: Asked) -> Iterator[Finding]:
    most, data = facts.config.data.max_prompt_length, facts.config.data
    if asked.too_long == 0:
        return
    if asked.used == 0:
        yield error(f"{key}: no prompt fits data.max_prompt_length={most} tokens; raise it (--max_prompt_length)")
    elif data.filter_overlong_prompts:
        yield warning(
            f"{key}: {asked.too_long} of {len(asked.questions)} questions are left out, because their prompts exceed "
            f"data.max_prompt_length={most} tokens"
        )
    else:
        yield error(
            f"{key}: {asked.too_long} of {len(asked.questions)} prompts exceed data.max_prompt_length={most} tokens; "
            "raise it, or leave them out with data.filter_overlong_prompts=true"
        )


def splits_differ(facts: TrainingFacts) -> Iterator[Finding]:
    training = {question.question for question in facts.train.questions}
    if shared := sum(question.question in training for question in facts.val.questions):
        yield warning(
            f"{shared} of {len(facts.val.questions)} validation questions are training questions, too: validation will "
            "look better than the model is"
        )


def questions_are_no_prompts(facts: TrainingFacts) -> Iterator[Finding]:
    """Rows made for other trainers hold a whole prompt in place of a question; ours would stand around it."""
    for key, asked in (("data.train_files", facts.train), ("data.val_files", facts.val)):
        texts = [question.question for question in asked.questions[:COMPARED]]
        common = os.path.commonprefix(texts) if len(texts) == COMPARED else ""  # noqa: RUF071  (texts, no paths)
        if len(common) >= LONGEST_COMMON_BEGINNING:
            yield warning(
                f"{key}: the questions begin with the same {len(common)} characters ({common[:60]!r}…): prompts stand "
                f"in the column {facts.config.data.prompt_key!r}; name the column of the questions (--prompt_key)"
            )


def chat_template_renders(facts: TrainingFacts) -> Iterator[Finding]:
    if moved := prompt_note(facts.tokenizer, facts.settings.apply_chat):
        yield note(moved)


def prompt_is_the_model_s(facts: TrainingFacts) -> Iterator[Finding]:
    """Of the last checkpoint, if the run goes on, or of the model that it starts from."""
    settings, step = facts.settings, last_step(facts.save_path)
    folder = facts.model_folder if step is None else facts.save_path / f"global_step_{step}"
    remedy = "unless the change is meant, give the same prompt"
    yield from prompt_findings(settings.prompt, settings.apply_chat, settings.dialect(), folder, remedy)


def sequence_fits_the_model(facts: TrainingFacts) -> Iterator[Finding]:
    positions = None if (model := facts.model) is None else model.positions
    if positions is not None and facts.sequence_tokens > positions:
        data = facts.config.data
        yield error(
            f"data.max_prompt_length={data.max_prompt_length} and data.max_response_length={data.max_response_length} "
            f"make {facts.sequence_tokens} tokens, but the model takes {positions} (its config.json); lower them"
        )


def heads_divide(facts: TrainingFacts) -> Iterator[Finding]:
    parallel = facts.config.actor_rollout_ref.rollout.tensor_model_parallel_size
    heads = None if (model := facts.model) is None else model.attention_heads
    if heads and heads % parallel:
        yield error(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={parallel} does not divide the model's {heads} "
            "attention heads; give a divisor"
        )


def bucket_is_large_enough(facts: TrainingFacts) -> Iterator[Finding]:
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    configured = facts.config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes
    if configured and (needed := bucket_megabytes(facts.model, facts.config)) > configured:
        yield note(f"{key}={configured} is raised to {needed}: the model's largest tensor needs it")


def disk_is_enough(facts: TrainingFacts) -> Iterator[Finding]:
    model = facts.model
    one = 0 if model is None else checkpoint_bytes(model, facts.config) or 0
    saves = facts.config.trainer.save_freq > 0
    problems = [*output_folder("trainer.default_local_dir", facts.save_path, one * saves, "a checkpoint")]
    yield from problems
    kept = kept_checkpoints(facts.config, facts.total_steps)
    keeps_one = facts.config.trainer.max_actor_ckpt_to_keep == 1
    fewer = "" if keeps_one else ", or keep one: trainer.max_actor_ckpt_to_keep=1"
    if not problems:
        for finding in output_folder("trainer.default_local_dir", facts.save_path, one * kept, f"{kept} checkpoints"):
            yield Finding(Severity.WARNING, finding.message + fewer)


def cache_can_be_written(facts: TrainingFacts) -> Iterator[Finding]:
    if not is_writable(facts.cache_folder):
        yield error(
            f"{facts.cache_folder} cannot be written (HOME, HF_HOME), and the questions are cached there; set "
            "XDG_CACHE_HOME to a folder that can"
        )


def ray_has_room_for_sockets(facts: TrainingFacts) -> Iterator[Finding]:
    yield from socket_folder(facts.ray_folder, RAY_SOCKET_NAME, "Ray", "RAY_TMPDIR")


TRAINING_RULES: dict[str, Rule[TrainingFacts]] = {
    "search.settings": gathered("settings"),
    "search.alarms": alarms_are_valid,
    "search.sandbox": sandbox_works,
    "search.reward": reward_works,
    "search.judge": judge_answers,
    "search.control": control_is_told,
    "resume.checkpoint": last_checkpoint_is_known,
    "critic.checkpoint": critic_can_go_on,
    "model.files": model_is_there,
    "model.folder": model_can_be_trained,
    "model.chat-template": chat_template_renders,
    "model.prompt": prompt_is_the_model_s,
    "model.positions": sequence_fits_the_model,
    "model.heads": heads_divide,
    "model.bucket": bucket_is_large_enough,
    "data.train": training_questions,
    "data.val": validation_questions,
    "model.tokens": prompts_are_of_its_tokens,
    "data.splits": splits_differ,
    "data.questions": questions_are_no_prompts,
    "search.server": servers_answer,
    "ray.cluster": ray_is_there,
    "ray.servers": servers_are_reached_from_each_node,
    "wandb.server": wandb_is_there,
    "machine.disk": disk_is_enough,
    "machine.cache": cache_can_be_written,
    "machine.sockets": ray_has_room_for_sockets,
    **HARDWARE_RULES,
    **MACHINE_RULES,
}


def preflight(facts: TrainingFacts) -> list[Finding]:
    """All findings about a run; seconds, not minutes. Raises `PreflightFailed` for counts that are none."""
    settings = examine(SETTINGS_RULES, facts.config)
    if no_counts := [finding for finding in settings if finding.rule == "settings.counts"]:
        raise PreflightFailed(no_counts)
    return examine({"settings": lambda _: settings, **TRAINING_RULES}, facts)
