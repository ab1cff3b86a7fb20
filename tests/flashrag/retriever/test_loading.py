"""What a process that searches or builds finds in its environment."""

import os

import pytest

from flashrag.retriever import PROCESS_VARIABLES, prepare_process

THREADS = ("OMP_NUM_THREADS", "RESEARCH_FORWARD_THREADS")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def found() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def test_a_process_that_builds_leaves_the_cores_to_the_libraries():
    prepare_process()
    assert found() == PROCESS_VARIABLES


def test_what_is_set_already_stays():
    os.environ.update({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"})
    prepare_process(searches=1)
    assert found() == {
        **PROCESS_VARIABLES,
        "OMP_WAIT_POLICY": "ACTIVE",
        "OMP_NUM_THREADS": "3",
        "RESEARCH_FORWARD_THREADS": "3",
    }


@pytest.mark.parametrize(("searches", "faiss_threads"), [(1, "8"), (2, "8"), (3, "4"), (5, "2"), (100, "1")])
def test_searches_divide_the_cores_among_their_faiss_threads_and_share_the_encoder(searches, faiss_threads):
    prepare_process(searches)
    assert [os.environ[name] for name in THREADS] == [faiss_threads, "8"]
