"""The one way to stop: what a worker asks reaches the trainer, and what the user is told to type."""

import pickle
import sys

import pytest

from verl_search.trainer.stopping import (
    COMMAND_VARIABLE,
    EXIT_STOPPED,
    StopTraining,
    check_stop_requests,
    resume_command,
)


def test_a_workers_request_is_raised_with_its_reason() -> None:
    check_stop_requests({"train": {"uid_0_0": {"status": "success"}}})
    with pytest.raises(StopTraining, match="the server is gone"):
        check_stop_requests({"train": {}, "stop": {"stop-17": {"reason": "the server is gone"}}})


def test_a_request_that_the_queue_has_not_tagged_yet_is_left_for_the_next_look() -> None:
    check_stop_requests({"stop": {"stop-17": {}}})
    with pytest.raises(StopTraining, match="the server is gone"):
        check_stop_requests({"stop": {"stop-16": {}, "stop-17": {"reason": "the server is gone"}}})


def test_a_stop_survives_the_way_between_processes() -> None:
    stop = pickle.loads(pickle.dumps(StopTraining("why")))
    assert (str(stop), stop.exit_code) == ("why", EXIT_STOPPED)


def test_the_command_that_resumes_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "training.launch", "--save_path", "with space"])
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)
    assert resume_command() == "python -m training.launch --save_path 'with space'"
    monkeypatch.setenv(COMMAND_VARIABLE, "bash training/run.sh")
    assert resume_command() == "bash training/run.sh"
