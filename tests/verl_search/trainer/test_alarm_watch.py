"""What alarms do to a run: notices, metrics, a save that is due, the stop and the checkpoint that it names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from flashrag.errors import UserError
from tests.verl_search.composing import composed
from verl_search.trainer.alarm_watch import AlarmWatch, RunCollapsed, configured_rules
from verl_search.trainer.stopping import NOTICE, StopTraining


def config(save_path: Path, *overrides: str) -> DictConfig:
    return composed("demo", f"trainer.default_local_dir='{save_path}'", *overrides)


COLLAPSE = ("+alarms.collapse.window=2", "alarms.collapse.patience=1")


def see(watch: AlarmWatch, step: int, *, saved: bool = False, **metrics: Any) -> dict[str, Any]:
    """One step's metrics, with / for __, as the trainer shows them."""
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    if saved:
        (watch.save_path / f"global_step_{step}").mkdir()
    watch.see(step, named, saved=saved)
    return named


def test_an_alarm_tells_and_joins_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = AlarmWatch(config(tmp_path, "alarms.kl.patience=1"))
    metrics = see(watch, 1, actor__kl_loss=0.9)
    assert capsys.readouterr().out == f"{NOTICE}alarm kl: actor/kl_loss is 0.9, above 0.5 [step 1]: warn\n"
    assert metrics == {"actor/kl_loss": 0.9, "alarm/kl": 1.0}
    assert not watch.save_due
    watch.check_stop()


def test_an_alarm_asks_for_a_checkpoint(tmp_path: Path) -> None:
    watch = AlarmWatch(config(tmp_path, "alarms.repetition.patience=1"))
    see(watch, 1, rollout__think_repeat_rate=0.9)
    assert watch.save_due


def test_a_collapse_stops_the_run_and_names_the_best_checkpoint(tmp_path: Path) -> None:
    watch = AlarmWatch(config(tmp_path, *COLLAPSE))
    both = {"val-core__1hop__em__mean@1": 0.5, "val-core__2hop__em__mean@1": 0.3}
    worse = {"val-core__1hop__em__mean@1": 0.1, "val-core__2hop__em__mean@1": 0.3}
    see(watch, 1, saved=True, critic__score__mean=0.6, **both)
    see(watch, 2, saved=True, critic__score__mean=0.6, **worse)
    watch.check_stop()
    see(watch, 3, saved=True, critic__score__mean=0.1)  # judged by the validation of step 2
    best = tmp_path / "best_checkpoint" / "global_step_1"
    with pytest.raises(RunCollapsed) as stop:
        watch.check_stop()
    assert str(stop.value) == (
        "alarm collapse: critic/score/mean is 0.1 (median of the 2 steps before: 0.6), falls_to 0.25 [step 3]. "
        f"The best checkpoint is kept: {best} (validation EM 0.400); to go on from it, add "
        f"trainer.resume_mode=resume_path trainer.resume_from_path={best}"
    )
    assert isinstance(stop.value, StopTraining)
    assert not stop.value.saves_checkpoint


@pytest.mark.parametrize("answers", [1, 4])  # to each question of a validation (val_kwargs.n)
def test_a_resumed_run_knows_the_best_checkpoint(tmp_path: Path, answers: int) -> None:
    see(AlarmWatch(config(tmp_path)), 1, saved=True, **{f"val-core__1hop__em__mean@{answers}": 0.5})
    watch = AlarmWatch(config(tmp_path, "alarms.kl.action=stop", "alarms.kl.patience=1"))
    see(watch, 2, actor__kl_loss=0.9)
    with pytest.raises(RunCollapsed, match=r"global_step_1 \(validation EM 0\.500\)"):
        watch.check_stop()


def log(folder: Path, name: str, steps: Mapping[int, Mapping[str, Any]]) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    lines = [json.dumps({"step": step, "data": metrics}) + "\n" for step, metrics in steps.items()]
    (folder / "metrics" / name).write_text("".join(lines))


def test_a_resumed_run_remembers_what_it_logged_up_to_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = "critic/score/mean"
    log(tmp_path, "1.jsonl", {1: {score: 0.6}, 2: {score: 0.1}, 3: {score: 0.05}})  # from 2 on trained again
    log(tmp_path, "2.jsonl", {2: {score: 0.8}, 3: {score: 0.1}})
    with (tmp_path / "metrics" / "3.jsonl").open("w") as file:
        file.write('{"step": 2, "data": {"val-core/1hop/em/mean@1": 0.5}}\n')  # before training, as verl logs it
    resumed = config(tmp_path, "+alarms.collapse.window=2", "alarms.collapse.patience=2")
    watch = AlarmWatch(resumed)
    watch.remember(2)
    see(watch, 3, saved=True, critic__score__mean=0.1)
    watch.check_stop()  # the breach of step 3 that was logged is none of this run
    see(watch, 4, critic__score__mean=0.1)
    with pytest.raises(
        RunCollapsed, match=r"median of the 2 steps before: 0\.7.*global_step_3 \(validation EM 0\.500\)"
    ):
        watch.check_stop()

    told = capsys.readouterr().out
    again = AlarmWatch(resumed)
    again.remember(3)  # one breach of two
    see(again, 4, critic__score__mean=0.1)
    with pytest.raises(RunCollapsed):
        again.check_stop()
    assert capsys.readouterr().out == told  # nothing is told twice


def test_a_new_run_has_nothing_to_remember(tmp_path: Path) -> None:
    watch = AlarmWatch(config(tmp_path, *COLLAPSE))
    watch.remember(0)
    # Two steps of history are needed: the second step, however bad, is compared with nothing.
    see(watch, 1, critic__score__mean=0.6)
    assert see(watch, 2, critic__score__mean=0.0)["alarm/collapse"] == 0.0
    watch.check_stop()


def test_a_run_that_never_validates_is_judged_by_training(tmp_path: Path) -> None:
    watch = AlarmWatch(config(tmp_path, "trainer.test_freq=-1", "alarms.kl.action=stop", "alarms.kl.patience=1"))
    see(watch, 1, saved=True, rollout__em=0.25)
    see(watch, 2, actor__kl_loss=0.9)
    with pytest.raises(RunCollapsed, match=r"training EM 0\.250"):
        watch.check_stop()


def test_a_metric_that_never_comes_is_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = "+alarms.mine={metric: rollout/no_such, action: stop, above: 1}"
    watch = AlarmWatch(config(tmp_path, rule))
    logged = {rule.metric: 1.0 for rule in configured_rules(config(tmp_path)).values()}
    for step in range(1, 21):
        watch.see(step, dict(logged), saved=False)
    notices = [line for line in capsys.readouterr().out.splitlines() if "not logged" in line]
    assert notices == [f"{NOTICE}10 steps have not logged rollout/no_such: no alarm from mine"]


def test_a_file_is_laid_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("kl: null\nmine: {metric: response_length/mean, above: 6000, action: save}\n")
    rules = configured_rules(config(tmp_path, f"alarm_file='{file}'"))
    assert "kl" not in rules
    assert rules["mine"].threshold == 6000
    assert "collapse" in rules


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"not found: .*rules\.yaml; give the path"),
        ("a: [", r"rules\.yaml is not valid YAML"),
        ("- a", r"rules\.yaml holds list; expected `key: value` lines"),
        ("mine: {metric: m, above: 1}", r"alarms\.mine .*: action is not set"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "rules.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        configured_rules(config(tmp_path, f"alarm_file='{file}'"))
