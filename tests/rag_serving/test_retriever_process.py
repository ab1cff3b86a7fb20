"""A real BM25 retriever in a process of its own: the same answers, its errors, and its death."""

import importlib
import os
import signal
import threading
import time
from functools import partial

import psutil
import pytest

from flashrag.errors import SearchError, UserError
from rag_serving.retriever_process import ProcessDied, RetrieverProcess

pytestmark = pytest.mark.timeout(300)  # a process imports the retriever anew

# What runs there must be found there by its name: a module on the path, which the test modules are not.
LOADERS = """
import os, signal, time
from flashrag.errors import SearchError, UserError
from flashrag.retriever import Retriever, check_assets, load_retriever_from
from flashrag.retriever.base import PassageCount
from rag_serving.settings import read_settings


def load(config):
    return load_retriever_from(check_assets(read_settings(config)))


def fail_to_load():
    raise UserError("index_path: gone")


def die_while_loading():
    os._exit(7)


class Fragile(Retriever):
    method, topk, corpus = "fragile", 3, PassageCount(5)

    def rank(self, queries, num):
        if "raise" in queries:
            raise SearchError("shard 2 is down")
        if "die" in queries:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in queries:
            time.sleep(600)
        return [[] for _ in queries]
"""


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaders")
    (folder / "process_loaders.py").write_text(LOADERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("process_loaders")


@pytest.fixture(scope="module")
def process(site, loaders):
    process = RetrieverProcess(partial(loaders.load, site.config), 2)
    yield process
    process.close()


def test_it_answers_as_the_retriever_itself(process, site, loaders):
    retriever = loaders.load(site.config)
    queries = ["capital of France", "oddity", "nothing of the sort"]
    assert process.rank(queries, 3) == retriever.rank(queries, 3)
    assert (process.method, process.topk, len(process.corpus)) == ("bm25", retriever.topk, len(retriever.corpus))


def test_a_killed_process_loses_nothing(process):
    expected = process.rank(["capital"], 2)
    wrong: list[object] = []
    until = time.monotonic() + 4.0
    asked = [0, 0]

    def ask(number: int) -> None:
        while time.monotonic() < until:
            if (found := process.rank(["capital"], 2)) != expected:
                wrong.append(found)
            asked[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    first = process.pid
    os.kill(first, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert process.pid != first
    assert wrong == []
    assert min(asked) > 0
    assert process.rank(["capital"], 2) == expected


def test_a_search_that_raises_leaves_the_process_alive(loaders):
    process = RetrieverProcess(loaders.Fragile, 1)
    pid = process.pid
    for _ in range(3):
        with pytest.raises(SearchError, match="shard 2 is down"):
            process.rank(["raise"], 1)
    assert process.rank(["fine"], 1) == [[]]
    assert process.pid == pid
    process.close()


def test_queries_that_kill_it_every_time_are_given_up(loaders):
    process = RetrieverProcess(loaders.Fragile, 1)
    with pytest.raises(ProcessDied, match="3 times over the same 1 queries"):
        process.rank(["die"], 1)
    assert process.rank(["fine"], 1) == [[]]
    process.close()


def test_what_stops_it_from_loading_is_told(loaders):
    with pytest.raises(UserError, match="index_path: gone"):
        RetrieverProcess(loaders.fail_to_load, 1)
    with pytest.raises(ProcessDied, match="exit code 7 while it loaded"):
        RetrieverProcess(loaders.die_while_loading, 1)


def test_nothing_is_left_of_it(loaders):
    process = RetrieverProcess(loaders.Fragile, 2)
    child = psutil.Process(process.pid)
    process.close()
    assert not child.is_running()


def test_closing_ends_a_search_that_hangs_and_starts_nothing_anew(loaders):
    process = RetrieverProcess(loaders.Fragile, 1)
    first, outcome = process.pid, []

    def hang() -> None:
        with pytest.raises(ProcessDied, match="was closed") as caught:
            process.rank(["hang"], 1)
        outcome.append(caught.value)

    asking = threading.Thread(target=hang)
    asking.start()
    time.sleep(0.2)  # it hangs
    process.close()
    asking.join(10)
    assert len(outcome) == 1
    assert process.pid == first
    assert not psutil.pid_exists(first)
    with pytest.raises(ProcessDied, match="was closed"):
        process.rank(["fine"], 1)
