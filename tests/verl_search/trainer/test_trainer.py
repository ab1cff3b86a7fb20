"""Which errors of upstream's loop stop a run on purpose; whole runs: tests/end_to_end/test_stopping.py."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorAlreadyExistsError, ActorDiedError, RayTaskError
from verl.trainer.ppo.v1 import PPOTrainerSync

from flashrag.errors import UserError
from verl_search.trainer import trainer as trainer_module
from verl_search.trainer.stopping import StopTraining
from verl_search.trainer.trainer import SearchTrainer, TaskRunnerHere


def fit_that_meets(error: Exception, lost: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the loop of a trainer that has trained no step yet, while these nodes are lost."""

    def meet(*_: object) -> None:
        raise error

    monkeypatch.setattr(PPOTrainerSync, "fit", meet)
    for name, replacement in (("hand_over", meet_nothing), ("living_nodes", list), ("silent_nodes", lambda _: lost)):
        monkeypatch.setattr(trainer_module, name, replacement)
    trainer: Any = object.__new__(SearchTrainer)  # what `fit` reads of a trainer, without the engines
    trainer.replay_buffer = SimpleNamespace(watch=meet_nothing)
    trainer._trained_steps = 0
    trainer.fit(SimpleNamespace(agent_loop_workers=[]))


def meet_nothing(*_: object) -> None:
    pass


def of_another_process(cause: Exception) -> RayTaskError:
    """What `ray.get` raises for an exception of the other side: both a RayTaskError and the exception itself."""
    return RayTaskError("update", "traceback", cause).as_instanceof_cause()


def test_a_dead_actor_stops_the_run_whichever_process_asked_it(monkeypatch: pytest.MonkeyPatch) -> None:
    died = "^a process of the run died: The actor died unexpectedly before finishing this task"
    for error in (ActorDiedError(), of_another_process(ActorDiedError())):
        with pytest.raises(StopTraining, match=died):
            fit_that_meets(error, [], monkeypatch)


def test_another_failure_of_a_call_ends_the_run_unless_a_node_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        fit_that_meets(of_another_process(ZeroDivisionError("no")), [], monkeypatch)
    with pytest.raises(StopTraining, match=r"^the Ray node 10\.0\.0\.2 does not answer: a process of the run died: no"):
        fit_that_meets(of_another_process(ZeroDivisionError("no")), ["10.0.0.2"], monkeypatch)


def test_the_task_runner_has_a_name_that_a_second_run_on_the_cluster_cannot_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    def taken(*_: object) -> None:
        raise ActorAlreadyExistsError("the name is taken")

    def options(**options: Any) -> SimpleNamespace:
        given.update(options)
        return SimpleNamespace(remote=taken)

    monkeypatch.setattr(trainer_module, "SearchTaskRunner", SimpleNamespace(options=options))
    for name in ("check_alone", "check_each_node", "on_this_node"):
        monkeypatch.setattr(trainer_module, name, meet_nothing)
    with pytest.raises(UserError, match="another run trains on this Ray cluster"):
        TaskRunnerHere(None).remote()
    assert (given["name"], given["namespace"]) == ("SearchTaskRunner", "verl_search")
