"""The effects of a run's alarms: the trainer reports each step here, and asks when to save and whether to stop.

Does not cover: the rules and their breaches (alarms.py), the storage of the best checkpoint (checkpoints.py).
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flashrag.config import read_yaml_mapping
from verl_search.trainer.alarms import Action, Alarm, Alarms, Rule, parse_rules
from verl_search.trainer.checkpoints import BestCheckpoint, best_checkpoint_path, keep_if_best, read_best_checkpoint
from verl_search.trainer.run_folder import METRICS_FOLDER, read_metrics
from verl_search.trainer.stopping import StopTraining, print_notice

# After this many steps, one notice names the metrics that were never logged: their rules cannot raise an alarm.
STEPS_TO_COME = 10


class RunCollapsed(StopTraining):
    """An alarm ended the run. Its current weights are not worth a checkpoint."""

    saves_checkpoint = False


def configured_rules(config: DictConfig) -> dict[str, Rule]:
    """The rules of the config, overridden by those of `alarm_file`; raises `UserError`."""
    rules = OmegaConf.to_container(config.alarms, resolve=True)
    assert isinstance(rules, dict), "alarms is a group of the config"
    if config.alarm_file is not None:
        rules |= read_yaml_mapping(Path(config.alarm_file))
    return parse_rules({str(name): rule for name, rule in rules.items()})


class AlarmWatch:
    """The alarms of one trainer, over the steps of its run."""

    def __init__(self, config: DictConfig):
        self.save_path = Path(config.trainer.default_local_dir)
        self.save_due = False
        self._rules = configured_rules(config)
        self._alarms = Alarms(self._rules)
        self._validates = config.trainer.test_freq > 0
        self._validation_em: float | None = None
        self._best = read_best_checkpoint(self.save_path)
        self._stop: Alarm | None = None
        self._unseen = {rule.metric for rule in self._rules.values()}
        self._steps_seen = 0

    def remember(self, last_step: int) -> None:
        """Take in the steps up to `last_step` that earlier processes of the run logged, without any notice.

        For a step that was trained more than once, the last time counts.
        """
        logged: dict[int, dict[str, Any]] = {}
        for step, metrics in read_metrics(self.save_path / METRICS_FOLDER):
            if step <= last_step:
                logged.setdefault(step, {}).update(metrics)
        for step in sorted(logged):
            self._see_validation(logged[step])
            self._alarms.see(step, logged[step])

    def see(self, step: int, metrics: dict[str, Any], *, saved: bool) -> None:
        """Take in a step's metrics, and add the alarms' own to them; `saved`: the step has a checkpoint."""
        self._see_validation(metrics)
        if saved:
            self._keep_if_best(step, metrics)
        alarms, own_metrics = self._alarms.see(step, metrics)
        self._tell_unseen(metrics)
        metrics.update(own_metrics)
        for alarm in alarms:
            print_notice(f"{alarm}: {alarm.rule.action.value}")
            self.save_due |= alarm.rule.action is Action.SAVE
            if alarm.rule.action is Action.STOP:
                self._stop = alarm

    def check_stop(self) -> None:
        """Raise `RunCollapsed` if an alarm says so; called when the step's metrics are logged."""
        if self._stop is not None:
            raise RunCollapsed(f"{self._stop}. {self._where_to_go_on()}")

    def _see_validation(self, metrics: Mapping[str, Any]) -> None:
        scores = [value for name, value in metrics.items() if name.startswith("val-") and "/em/mean@" in name]
        self._validation_em = fmean(scores) if scores else self._validation_em

    def _where_to_go_on(self) -> str:
        if self._best is None:
            return "No checkpoint is known to be better than the last one"
        path = best_checkpoint_path(self.save_path, self._best)
        return (
            f"The best checkpoint is kept: {path} ({self._best.metric} {self._best.score:.3f}); to go on from it, add "
            f"trainer.resume_mode=resume_path trainer.resume_from_path={path}"
        )

    def _keep_if_best(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Judge a checkpoint by the newest validation, or by training where the run never validates."""
        metric, score = "validation EM", self._validation_em
        if not self._validates:
            metric, score = "training EM", metrics.get("rollout/em")
        if score is not None:
            self._best = keep_if_best(self.save_path, BestCheckpoint(step, metric, float(score)))

    def _tell_unseen(self, metrics: Mapping[str, Any]) -> None:
        self._unseen -= metrics.keys()
        self._steps_seen += 1
        if self._steps_seen == STEPS_TO_COME and self._unseen:
            names = ", ".join(name for name, rule in self._rules.items() if rule.metric in self._unseen)
            print_notice(
                f"{STEPS_TO_COME} steps have not logged {', '.join(sorted(self._unseen))}: no alarm from {names}"
            )
