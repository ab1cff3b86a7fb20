"""What a run does on the nodes of a cluster that it has joined; a whole run on two: tests/end_to_end/test_nodes.py."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from fastapi import FastAPI

from tests.nodes import PATIENCE
from verl_search.platform.ray_nodes import enter_run, problems_here, silent_nodes


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """This process as Ray starts one of a run: in the folder of `ray start`, with the run's folder in a variable."""
    monkeypatch.setattr(os, "environ", {**os.environ, "RESEARCH_FOLDER": str(tmp_path)})
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.chdir("/")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    return monkeypatch


def test_a_process_of_a_run_stands_where_the_driver_does(process: pytest.MonkeyPatch, tmp_path: Path):
    enter_run()
    assert Path.cwd() == tmp_path
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo", "whatever address the machine's name has"
    process.setenv("GLOO_SOCKET_IFNAME", "ib0")  # of the node's own
    process.setenv("RESEARCH_FOLDER", str(tmp_path / "of another machine"))
    process.chdir("/")
    enter_run()
    assert (str(Path.cwd()), os.environ["GLOO_SOCKET_IFNAME"]) == ("/", "ib0")


@pytest.mark.usefixtures("process")
def test_a_node_tells_what_it_lacks(tmp_path: Path, serve: Callable[[Any], str], closed_url: str):
    app = FastAPI()
    app.get("/health")(lambda: {"status": "healthy"})
    app.get("/metrics")(lambda: "")
    look, url, lacking = problems_here._function, serve(app), tmp_path / "model"
    assert look([tmp_path], url, {"RESEARCH_SERVER_TOKEN": "t"}) == []
    assert os.environ["RESEARCH_SERVER_TOKEN"] == "t"
    missing, unreached = look([tmp_path, lacking], closed_url, {})
    assert missing == f"{lacking} is not there"
    assert unreached.startswith(f"no retrieval server answers at search_url={closed_url} (ConnectError")


def test_a_node_that_does_not_answer_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_server(("127.0.0.1", 0)) as another:
        nodes = [
            {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": listening.getsockname()[1]},
            {"NodeManagerAddress": "127.0.0.2", "NodeManagerPort": another.getsockname()[1]},  # it listens elsewhere
        ]
        assert silent_nodes(nodes) == ["127.0.0.2"]


TWO_RUNS = """
import ray
import transfer_queue
from flashrag.errors import UserError
from verl_search.platform.ray_nodes import check_alone

ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
check_alone()
transfer_queue.init()
try:
    check_alone()
except UserError as error:
    print(error)
transfer_queue.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_run_on_a_cluster_is_refused():
    """The queue of another run of verl would be taken for the run's own."""
    command = [sys.executable, "-W", "ignore", "-c", TWO_RUNS]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **PATIENCE}, check=False)
    assert "another run trains on this Ray cluster" in done.stdout, done.stderr
