"""Mistakes in `key=value`: each is refused in one line that says what to change, by both commands that train."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from flashrag.errors import UserError
from tests.verl_search.composing import composed
from verl_search import composition
from verl_search.composition import check_command_line, check_composed, check_overrides, compose_config, quoted

MISTAKES = [
    ("trainer.total_epoch=3", "unknown setting 'trainer.total_epoch'; did you mean 'trainer.total_epochs'?"),
    ("trainre.total_epochs=3", "did you mean 'trainer.total_epochs'?"),
    ("search.topn=3", "unknown setting 'search.topn'; did you mean 'search.top_n'?"),
    ("save_freq=3", "unknown setting 'save_freq'; did you mean 'trainer.save_freq'?"),
    ("search.colour=3", "most likely it is a typo: +search.colour=… would add a setting"),
    ("actor_rollout_ref.model.override_config={a: 1}", "it can be added: +actor_rollout_ref.model.override_config.a=…"),
    ("+trainer.nnodes=2", "+trainer.nnodes adds a setting that is there already"),
    ("foo@bar=1", "config group 'foo' does not exist. A setting is written key=value"),
    ("model_engine=foo", "there is no config 'model_engine/foo'; choose one of: dp, megatron, torchtitan, veomni"),
    ("hydra.colour=1", "unknown setting 'hydra.colour'"),
]
UNREADABLE = [
    ("data.train_files=a=b", """quote its value, and the whole for the shell: 'data.train_files="a=b"'"""),
    ("data.train_files='a", """the shell: 'data.train_files="a"'"""),
    ('data.train_files="a', """the shell: 'data.train_files="a"'"""),
    ("data.train_files=[a", "a list is written [a,b], a mapping {a: b}"),
    ("data.train_files={a:", "a list is written [a,b], a mapping {a: b}"),
    ("data.train_files=${", "cannot be read: ${…} refers to another setting"),
    ("data.train_files=run(1)", """'data.train_files="run(1)"'"""),
    ("data.train_files=Ünal", """'data.train_files="Ünal"'"""),
    ("data.train_files=a\nb", r"""'data.train_files="a\nb"'"""),
    ("a b=3", "'a b=3' is not a setting; expected key=value, such as trainer.total_epochs=3"),
    ("trainer..nnodes=3", "is not a setting; expected key=value"),
    ("trainer.logger[0]=x", "is not a setting; expected key=value"),
    ("=3", "is not a setting; expected key=value"),
    ("@trainer=3", "is not a setting; expected key=value"),
    ("foo@bar", "is not a setting; expected key=value"),
    ("~trainer.nnodes", "takes a setting away that is read in training; give it a value: trainer.nnodes=null"),
    ("trainer.project_name=???", "??? marks a value that is missing; give it one"),
    ("search.top_n=1,2", """text with a comma is quoted: 'search.top_n="1,2"'"""),
    ("search.top_n=range(1,3)", "one command trains one config: start it once for each value"),
    ("hydra.mode=MULTIRUN", "one command trains one config: start it once for each value"),
]
UNRESOLVED = [
    ("data.seed", "${x}", "'data.seed=${x}' cannot be resolved: Interpolation key 'x' not found"),
    ("data.seed", "${data.sed}", "Interpolation key 'data.sed' not found; did you mean 'data.seed'?"),
    ("data.seed", "${data.seed}", "Recursive interpolation detected"),
    ("data.seed", "${oc.env:NOBODY_SETS_THIS}", "Environment variable 'NOBODY_SETS_THIS' not found"),
    ("data.seed", "${nothing:1}", "Unsupported interpolation type nothing"),
    ("data.cls", r"a\${b}", "data.cls='a${b}': ${…} refers to another setting, and text in the config cannot hold it"),
]
WRONG_KINDS = [
    ("trainer.nnodes", "two", "trainer.nnodes='two': expected a number, for example 1"),
    ("trainer.nnodes", float("inf"), "trainer.nnodes=inf: expected a number"),
    ("trainer.nnodes", True, "trainer.nnodes=True: expected a number"),
    ("trainer.val_before_train", 1, "trainer.val_before_train=1: expected true or false, for example True"),
    ("trainer.logger", 1, "trainer.logger=1: expected a list"),
    ("trainer.project_name", {"a": 1}, "trainer.project_name is no group of settings; expected one value"),
    ("data.apply_chat_template_kwargs", 5, "expected a mapping"),
    ("trainer", 5, "trainer=5: trainer is a group of settings; set those in it, such as trainer."),
    ("trainer.v1", None, "trainer.v1=None: trainer.v1 is a group of settings"),
]
FINE = [
    ("alarms.kl", None),  # no such alarm
    ("data.train_files", ["a.parquet", "b.parquet"]),
    ("trainer.logger", "console"),
    ("trainer.total_training_steps", 3),
    ("actor_rollout_ref.rollout.top_p", 0.5),
    ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu", None),
    ("trainer.nnodes", "${trainer.n_gpus_per_node}"),
]


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_a_setting_that_is_not_there_is_named_with_the_nearest(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config("research", [override])
    assert message in one_line(caught)


@pytest.mark.parametrize(("override", "message"), UNREADABLE)
def test_an_override_that_cannot_be_read_is_shown_as_it_should_be(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_overrides([override])
    assert message in one_line(caught)


def changed(key: str, value: object) -> DictConfig:
    config = composed("research")
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


@pytest.mark.parametrize(("key", "value", "message"), [*UNRESOLVED, *WRONG_KINDS])
def test_a_value_that_cannot_stand_in_the_config_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_composed(changed(key, value), "research", [f"{key}={value}"])
    assert message in one_line(caught)


@pytest.mark.parametrize(("key", "value"), FINE)
def test_a_value_of_a_fitting_kind_passes(key: str, value: object) -> None:
    check_composed(changed(key, value), "research", [f"{key}={value}"])


def test_a_key_of_a_librarys_mapping_may_be_left_out() -> None:
    key = "actor_rollout_ref.rollout.engine_kwargs.vllm.block_size"
    check_overrides([f"~{key}"])


def test_a_config_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"there is no config 'reserch'; choose one of: research, cpu, demo"):
        compose_config("reserch", [])


def test_many_runs_are_refused() -> None:
    for words in (["--multirun"], ["search.top_n=3", "-m"], ["--config-name", "cpu", "search.top_n=1,2"]):
        with pytest.raises(UserError, match="one command trains one config"):
            check_command_line(words)
    check_command_line(["--config-name=cpu", "--cfg", "job", "search.top_n=3"])


@settings(deadline=None)
@given(st.text())
@example("it's a=[path], {really}")
@example("a\\")
@example("\\'b\\\\")
@example("$x {y} ${z}")
@example("???")
@example("\udc80")
@example(" 'a' ")
def test_any_text_comes_through_or_is_refused(text: str) -> None:
    try:
        override = f"trainer.project_name={quoted(text)}"
    except UserError as refused:
        assert "\n" not in str(refused)
        assert text == "???" or any("\ud800" <= letter <= "\udfff" for letter in text)
        return
    check_overrides([override])
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert OmegaConf.create({"name": parsed.value()}).name == text


@pytest.mark.parametrize("folder", ["out/${x}", r"a\\${b}", "${trainer.nnodes}", "${", "läuft gut, '${x}'"])
def test_a_runs_folder_may_have_any_name(folder: str) -> None:
    config = compose_config("cpu", [f"trainer.default_local_dir={quoted(folder)}"])
    for group in (config.trainer, config.search) * 2:
        OmegaConf.resolve(group)  # as upstream's task runner does, before it resolves values again for the loggers
    assert str(config.trainer.default_local_dir) == folder
    assert str(config.search.trajectory_dir) == f"{folder}/trajectories"
    (override,) = OverridesParser.create().parse_overrides([f"data.train_files={quoted(folder)}"])
    with pytest.raises(UserError, match="text in the config cannot hold it"):
        check_composed(changed("data.train_files", override.value()), "research", ["data.train_files"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(*MISTAKES[0], id="by Hydra", marks=pytest.mark.slow),  # quick: training.launch says the same
        pytest.param("data.seed=${x}", UNRESOLVED[0][2], id="by us"),
    ],
)
def test_the_trainers_own_command_refuses_in_one_line_too(tmp_path: Path, override: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "verl_search.main_ppo", "--config-name", "cpu", override],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(("in_bfloat16", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_computes_in_bfloat16_where_its_processor_does(
    in_bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "computes_in_bfloat16", lambda: in_bfloat16)
    config = compose_config("cpu", [])
    parts = config.actor_rollout_ref
    precisions = [
        parts.rollout.dtype,
        *(part.fsdp_config.mixed_precision.param_dtype for part in (parts.actor, parts.ref)),
    ]
    assert [*precisions, config.critic.fsdp.mixed_precision.param_dtype] == [expected] * 4
    assert parts.actor.fsdp_config.dtype == "float32", "of the weights that are kept"
    assert compose_config("warm_start_cpu", []).engine.mixed_precision.param_dtype == expected


def test_a_given_precision_and_that_of_other_configs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "computes_in_bfloat16", lambda: True)
    for name, overrides in (("demo", []), ("cpu", ["actor_rollout_ref.rollout.dtype=float32"])):
        config = compose_config(name, overrides).actor_rollout_ref
        assert (config.rollout.dtype, config.actor.fsdp_config.mixed_precision.param_dtype) == ("float32", "float32")
    assert compose_config("research", []).actor_rollout_ref.rollout.dtype == "bfloat16"
    given = compose_config("warm_start_cpu", ["engine.mixed_precision.param_dtype=fp32"])
    assert given.engine.mixed_precision.param_dtype == "fp32"
