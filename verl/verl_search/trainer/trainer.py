"""Upstream's synchronous trainer, extended: it watches alarms and saves a checkpoint before it stops on purpose.

main_ppo.py hands `TaskRunnerHere` to upstream's `run_ppo`, for which it creates a `SearchTaskRunner`. That one puts
`SearchTrainer` in the place of upstream's trainer of the same mode, and then runs upstream's task runner.
Does not cover: why a run stops (stopping.py, alarm_watch.py).
"""

import os
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError, RayActorError, RayTaskError
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerSync

from flashrag.errors import UserError
from flashrag.prompts import write_record
from verl_search.platform.ray_cluster import private_variables
from verl_search.platform.ray_nodes import (
    NOT_ALONE,
    RUNNER,
    check_alone,
    check_each_node,
    hand_over,
    living_nodes,
    on_this_node,
    silent_nodes,
)
from verl_search.platform.upstream import (
    replace_advantages,
    replace_sync_trainer,
    replace_tracking,
    upstream_task_runner,
)
from verl_search.settings import SearchSettings
from verl_search.trainer.advantage import compared_advantages
from verl_search.trainer.alarm_watch import AlarmWatch
from verl_search.trainer.stopping import StopTraining, print_notice
from verl_search.trainer.tracking import OptionalTracking
from verl_search.trainer.watch import a_process_died, dead_replicas, hand_over_weights


class SearchTrainer(PPOTrainerSync):
    """`PPOTrainerSync` with a checkpoint at each stop; the questions of an interrupted step are queued again."""

    def __init__(self, config: Any):
        super().__init__(config)
        self._trained_steps = self._saved_steps = 0
        # The dataloader's state before the current step; None between two steps.
        self._data_before_step: dict[str, Any] | None = None
        self._alarms = AlarmWatch(config)
        self._dead_replicas: list[str] = []
        settings = SearchSettings.from_config(config.search)
        self._prompt = settings.prompt.record(settings.apply_chat)  # as it begins: a file may change later
        write_record(Path(config.trainer.default_local_dir), self._prompt)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        # Upstream does not name the split of a row, and the files cannot: both splits may be of the same one.
        self.train_dataset.split, self.val_dataset.split = "train", "val"
        print_notice("Ray is up; next the training processes load the model, then the rollout engines start")

    def on_init_end(self) -> None:
        super().on_init_end()
        print_notice("the model and the rollout engines are up")

    def fit(self, agent_loop_manager: Any) -> None:
        hand_over(private_variables(os.environ), agent_loop_manager.agent_loop_workers)
        self.replay_buffer.watch(agent_loop_manager.agent_loop_workers)
        nodes = living_nodes()
        try:
            super().fit(agent_loop_manager)
        except (StopTraining, RayActorError, RayTaskError) as error:
            lost = silent_nodes(nodes)
            # Where a node is lost, calls that it took part in fail in the processes of the others. The death of an
            # actor that another process asked is raised as both, RayTaskError and RayActorError.
            if not lost and not isinstance(error, StopTraining | RayActorError):
                raise
            # Upstream may meet a dead actor before the next check of our watch.
            stop = error if isinstance(error, StopTraining) else a_process_died(error)
            if not stop.saves_checkpoint:
                raise
            reason = f"the Ray node {', '.join(lost)} does not answer: {stop}" if lost else stop
            raise StopTraining(f"{reason}. {self._save_trained_steps()}") from error

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> KVBatchMeta:
        self._data_before_step = self.train_dataloader.state_dict()
        batch = super().step(metrics, timing_raw)
        self._data_before_step = None
        self._trained_steps = self.global_steps
        return batch

    def on_step_begin(self) -> None:
        # By now the metrics of the last step have been logged.
        self._alarms.check_stop()
        if self._dead_replicas:
            raise StopTraining(f"a rollout replica failed: the engine of {', '.join(self._dead_replicas)} is dead")
        super().on_step_begin()

    def on_step_end(self) -> None:
        # Upstream saves its own checkpoints here too: the rollout engine is asleep.
        if self._alarms.save_due and self._saved_steps < self.global_steps:
            self._save_checkpoint()
        self._dead_replicas = self._find_dead_replicas()
        if not self._dead_replicas:  # a dead replica would never take the new weights
            hand_over_weights(super().on_step_end, self._find_dead_replicas)

    def _find_dead_replicas(self) -> list[str]:
        return dead_replicas(self.config.actor_rollout_ref.rollout.name, self.llm_server_manager.get_addresses())

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        self._alarms.see(self.global_steps, metrics, saved=self._saved_steps == self.global_steps)

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        self._trained_steps = self._saved_steps = self.global_steps
        self._alarms.remember(self.global_steps)

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        step_folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        write_record(step_folder, self._prompt)
        self._saved_steps = self.global_steps
        self._alarms.save_due = False

    def _save_trained_steps(self) -> str:
        """Save a checkpoint of the trained steps unless there is one; returns a sentence for the user."""
        if self._trained_steps == 0:
            return "No step has been trained yet, so there is nothing to save"
        if self._saved_steps < self._trained_steps:
            if self._data_before_step is not None:
                self.train_dataloader.load_state_dict(self._data_before_step)
            self.global_steps = self._trained_steps
            try:
                self._save_checkpoint()
            except Exception as error:  # the reason of the stop must reach the user in any case
                return f"The checkpoint of step {self._trained_steps} could not be saved: {error!r}"
        return f"The checkpoint of step {self._trained_steps} is in {self.config.trainer.default_local_dir}"


@ray.remote(num_cpus=0)  # by default Ray waits for a node with a processor, and the head of a cluster may offer none
class SearchTaskRunner:
    """The actor in which upstream's task runner runs our trainer. `variables` are set in its environment."""

    def __init__(self, variables: dict[str, str]):
        os.environ.update(variables)

    def run(self, config: Any) -> None:
        replace_sync_trainer(SearchTrainer)
        replace_tracking(OptionalTracking)
        replace_advantages(compared_advantages)
        upstream_task_runner().run(config)


class TaskRunnerHere:
    """Stands for `SearchTaskRunner` where upstream's `run_ppo` creates it: on the driver's node, with its keys.

    The cluster has been joined by then, so this is where its nodes are looked at.
    """

    def __init__(self, config: Any, **options: Any):
        self.config, self._options = config, options

    def options(self, **options: Any) -> "TaskRunnerHere":
        return TaskRunnerHere(self.config, **options)

    def remote(self) -> Any:
        check_alone()
        check_each_node(self.config)
        options = {**self._options, **RUNNER, "scheduling_strategy": on_this_node()}
        try:
            return SearchTaskRunner.options(**options).remote(private_variables(os.environ))  # pyrefly: ignore
        except ActorAlreadyExistsError as error:
            raise UserError(NOT_ALONE) from error
