"""Which Ray a run uses, and whether the cluster that it is to join answers, takes our token and has room."""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastapi import FastAPI
from omegaconf import OmegaConf
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from flashrag.errors import UserError
from flashrag.system.local_server import free_port
from flashrag.system.processes import start_process, stop_process, tail
from tests.proxies import clear_proxies
from tests.verl_search.composing import composed
from verl_search.main_ppo import complete
from verl_search.platform import ray_cluster
from verl_search.platform.ray_cluster import (
    Needs,
    Node,
    RayChoice,
    check_nodes,
    check_own_token,
    check_ray,
    choose_ray,
    forwarded_variables,
    needs,
    private_variables,
)

JOINED = RayChoice("10.0.0.1:6379", "RAY_ADDRESS")
NEEDS = Needs(nodes=1, gpus_per_node=1, cpus=8)
OWN_ADDRESS = "127.0.0.1"


@pytest.fixture(autouse=True)
def no_ray_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_proxies(monkeypatch)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


class Control(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """A cluster's control service, as far as it tells its nodes, each of which takes connections at a port."""

    def __init__(self, nodes: list[Node], token: str | None, port: int):
        self.nodes = nodes
        self.token = token
        self.port = port

    def GetAllNodeInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002
        if self.token and ("authorization", f"Bearer {self.token}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        nodes = [
            gcs_pb2.GcsNodeInfo(
                node_manager_address=node.address,
                node_manager_port=self.port,
                resources_total={"GPU": node.gpus, "CPU": node.cpus},
            )
            for node in self.nodes
        ]
        return gcs_service_pb2.GetAllNodeInfoReply(node_info_list=nodes)


@contextmanager
def cluster(*nodes: Node, token: str | None = None) -> Iterator[RayChoice]:
    """A cluster whose nodes take connections at `OWN_ADDRESS`, and nowhere else."""
    server = grpc.server(ThreadPoolExecutor(1))
    with socket.create_server((OWN_ADDRESS, 0)) as raylet:
        control = Control(list(nodes), token, raylet.getsockname()[1])
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(control, server)
        port = server.add_insecure_port(f"{OWN_ADDRESS}:0")
        server.start()
        try:
            yield RayChoice(f"{OWN_ADDRESS}:{port}", "RAY_ADDRESS")
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize(
    ("variable", "configured", "expected"),
    [
        (None, None, RayChoice("local")),  # whatever cluster runs on this machine
        ("", None, RayChoice("local")),
        (" local ", None, RayChoice("local")),
        ("10.0.0.1:6379", None, JOINED),
        ("10.0.0.1:6379", "local", RayChoice("local")),
        (None, "10.0.0.2:6379", RayChoice("10.0.0.2:6379", "ray_kwargs.ray_init.address")),
        ("auto", None, RayChoice("auto", "RAY_ADDRESS")),
        ("[fd00::1]:6379", None, RayChoice("[fd00::1]:6379", "RAY_ADDRESS")),
    ],
)
def test_a_run_joins_only_what_is_named(variable: str | None, configured: str | None, expected: RayChoice):
    assert choose_ray({} if variable is None else {"RAY_ADDRESS": variable}, configured, 1) == expected


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:8265", "the address of Ray's dashboard"),
        ("ray://head:10001", "give the command on a node of the cluster, not through Ray's client"),
        ("head", "names no port"),
        ("head:six", "Invalid port"),
        ("head:0", "0 is no port"),
        ("grpc://head:1", "begins with none of"),
        (":6379", "names no host"),
    ],
)
def test_an_address_that_is_none_of_rays_is_refused(address: str, reason: str):
    with pytest.raises(UserError, match=rf"^RAY_ADDRESS=.*{reason}.*expected the address that `ray start` prints"):
        choose_ray({"RAY_ADDRESS": address}, None, 1)


def test_several_nodes_need_a_cluster():
    with pytest.raises(UserError, match=r"nnodes=2 needs a Ray cluster.*set RAY_ADDRESS=HEAD:6379"):
        choose_ray({}, None, 2)
    assert choose_ray({"RAY_ADDRESS": "head:6379"}, None, 2).joins


def test_a_dead_address_is_refused_at_once(closed_port: int):
    choice = RayChoice(f"127.0.0.1:{closed_port}", "RAY_ADDRESS")
    started = time.monotonic()
    with pytest.raises(UserError, match=f"no Ray cluster answers at RAY_ADDRESS={choice.address} .*unset it"):
        check_ray(choice, NEEDS)
    assert time.monotonic() - started < 2


def test_a_left_behind_address_file_is_refused_for_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # whatever else runs on the machine
    auto = choose_ray({"RAY_ADDRESS": "auto"}, None, 1)
    with pytest.raises(UserError, match="RAY_ADDRESS=auto, but no Ray cluster runs on this machine"):
        check_ray(auto, NEEDS)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{closed_port}")
    with pytest.raises(UserError, match="no Ray cluster answers at RAY_ADDRESS=auto"):
        check_ray(auto, NEEDS)


def test_another_server_is_told_apart(serve: Callable[[Any], str]):
    address = serve(FastAPI()).removeprefix("http://")
    started = time.monotonic()
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address} answers, but not as a Ray cluster"):
        check_ray(RayChoice(address, "RAY_ADDRESS"), NEEDS)
    assert time.monotonic() - started < 7


def test_a_server_that_never_answers_is_left_after_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_cluster, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match="answers, but not as a Ray cluster"):
            check_ray(RayChoice(address, "RAY_ADDRESS"), NEEDS)
        assert time.monotonic() - started < 2


def test_a_cluster_with_room_is_joined_past_any_proxy(monkeypatch: pytest.MonkeyPatch, closed_url: str):
    for name in ("http_proxy", "grpc_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_url)
    node = Node(OWN_ADDRESS, 1, 8)
    with cluster(node) as choice:
        assert check_ray(choice, NEEDS) == [node]


def test_a_node_that_has_just_died_is_told_though_ray_still_counts_it():
    with cluster(Node(OWN_ADDRESS, 1, 16), Node("127.0.0.3", 1, 16)) as choice:
        with pytest.raises(
            UserError, match=r"counts 127\.0\.0\.3 as living, but nothing answers there; start Ray on it"
        ):
            check_ray(choice, NEEDS)
        with pytest.raises(
            UserError, match=r"has 1 nodes with 1 GPUs .*16 CPUs in all \(127\.0\.0\.3 does not answer\);"
        ):
            check_ray(choice, NEEDS._replace(nodes=2))


@pytest.mark.parametrize(
    ("nodes", "needed", "message"),
    [
        ([Node(OWN_ADDRESS, 0, 16)], NEEDS, "has 0 nodes with 1 GPUs .* and 16 CPUs in all; the run needs 1 and 8"),
        (
            [Node(OWN_ADDRESS, 8, 4), Node("10.9.9.9", 8, 64)],
            Needs(2, 8, 54),
            "has 1 nodes with 8 GPUs .* and 24 CPUs,",
        ),
        ([Node(OWN_ADDRESS, 8, 24)], Needs(1, 8, 30), "and 24 CPUs in all; the run needs 1 and 30.*--num-cpus=30"),
        ([Node(OWN_ADDRESS, 8, 24)] * 2, Needs(2, 8, 54), "needs 2 and 54.*--num-gpus=8 --num-cpus=27"),
        ([Node(OWN_ADDRESS, 1, 2)], NEEDS, "--num-gpus=1 --num-cpus=8"),
        ([Node(OWN_ADDRESS, 8, 64), Node("10.9.9.9", 4, 64)], Needs(2, 8, 1), "has 1 nodes with 8 GPUs"),
        (
            [Node(OWN_ADDRESS, 1, 4), Node("10.9.9.9", 1, 64, answers=False)],
            NEEDS,
            "and 4 CPUs in all .10.9.9.9 does not",
        ),
        ([Node("198.51.100.7", 8, 64)], NEEDS, "this machine is no node of .*`ray start --address=10.0.0.1:6379` here"),
        ([], NEEDS, "this machine is no node of"),
    ],
)
def test_a_cluster_without_room_is_refused(nodes: list[Node], needed: Needs, message: str):
    with pytest.raises(UserError, match=message):
        check_nodes(nodes, JOINED, needed)


@pytest.mark.parametrize(
    ("variables", "outcome"),
    [
        ({}, "refuses our token; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token"}, "and there is none in RAY_AUTH_TOKEN or ~/.ray/auth_token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/file"}, "RAY_AUTH_TOKEN_PATH=/no/file holds none"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}, "refuses our token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "right"}, "joined"),
    ],
)
def test_a_cluster_that_wants_a_token(
    variables: dict[str, str], outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    with cluster(Node(OWN_ADDRESS, 1, 8), token="right") as choice, monkeypatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        reset_auth_token_state()  # Ray reads them once
        try:
            check_ray(choice, NEEDS)
            told = "joined"
        except UserError as error:
            told = str(error)
    reset_auth_token_state()
    assert outcome in told
    assert "right" not in told and "wrong" not in told


def test_a_ray_of_ones_own_needs_a_place_for_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    check_ray(RayChoice("local"), NEEDS)
    (tmp_path / "home").write_text("no folder can be made in a file")
    with pytest.raises(UserError, match=r"keeps its token in .*/\.ray/auth_token \(HOME\).*set RAY_AUTH_TOKEN"):
        check_ray(RayChoice("local"), NEEDS)
    check_own_token({"RAY_AUTH_TOKEN": "secret"})
    check_own_token({"RAY_AUTH_MODE": "disabled"})
    check_own_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "home")})
    with pytest.raises(UserError, match=r"keeps its token in /no/file \(RAY_AUTH_TOKEN_PATH\)"):
        check_own_token({"RAY_AUTH_TOKEN_PATH": "/no/file"})


@pytest.mark.parametrize(("name", "reserved", "gpus"), [("cpu", 3 + 1 + 4, 1), ("research", 3 * 8 + 2 + 4, None)])
def test_a_run_of_its_own_gives_ray_its_resources(name: str, reserved: int, gpus: int | None):
    config = composed(name, "actor_rollout_ref.model.path=org/model")
    complete(config)
    ray_init = config.ray_kwargs.ray_init
    # With fewer CPUs than verl reserves, a machine of few cores and eight GPUs would wait without end.
    cpus = max(reserved, len(os.sched_getaffinity(0)))
    assert (ray_init.address, ray_init.num_cpus, ray_init.get("num_gpus")) == ("local", cpus, gpus)


def test_a_run_that_joins_leaves_them_out_and_takes_its_environment_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("http_proxy", "http://user:hidden@proxy:3128")
    monkeypatch.setenv("PYTHONPATH", "code:/opt/more")
    given = {
        "TENSORBOARD_DIR": "/runs/tensorboard",
        "WANDB_NAME": "one",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "HF_HOME": "hf",
    }
    of_one_node = {"VLLM_HOST_IP": "10.0.0.1", "CUDA_VISIBLE_DEVICES": "0"}
    keys = dict.fromkeys(("WANDB_API_KEY", "RESEARCH_SERVER_TOKEN", "HF_TOKEN", "JUDGE_API_KEY"), "hidden")
    for name, value in (given | of_one_node | keys).items():
        monkeypatch.setenv(name, value)
    config = composed("cpu", "actor_rollout_ref.model.path=org/model")
    complete(config)
    ray_init = config.ray_kwargs.ray_init
    assert (ray_init.address, ray_init.num_cpus, ray_init.num_gpus) == ("10.0.0.1:6379", None, None)
    variables = OmegaConf.to_container(ray_init.runtime_env.env_vars)
    assert isinstance(variables, dict)
    assert given.items() <= variables.items() and not of_one_node.keys() & variables.keys()
    assert variables["PYTHONPATH"] == f"{tmp_path}/code:/opt/more" and variables["RESEARCH_FOLDER"] == str(tmp_path)
    assert "127.0.0.1" in variables["NO_PROXY"]
    assert "hidden" not in str(ray_init)  # which verl prints
    assert keys.items() <= private_variables(os.environ).items()
    assert private_variables(os.environ)["http_proxy"] == "http://user:hidden@proxy:3128"


def test_what_ray_would_change_on_its_way_is_refused():
    with pytest.raises(
        UserError, match=r"^TENSORBOARD_DIR='/runs/\$x/tensorboard' cannot travel to .* a \$; give folders"
    ):
        forwarded_variables({"TENSORBOARD_DIR": "/runs/$x/tensorboard"})
    assert "HF_TOKEN" not in forwarded_variables({"HF_TOKEN": "a$b"})


def test_a_run_says_which_cluster_it_joins():
    assert JOINED.note([Node("10.0.0.1", 8, 96), Node("10.0.0.2", 4, 96)]) == (
        "training joins the Ray cluster at 10.0.0.1:6379 (RAY_ADDRESS): 10.0.0.1 (8 GPUs, 96 CPUs), "
        "10.0.0.2 (4 GPUs, 96 CPUs)"
    )


@pytest.mark.parametrize(
    ("name", "overrides", "cpus"),
    [
        ("cpu", [], 3 + 1 + 4),  # a training process, the queue's storage, and what stands beside
        ("research", ["trainer.n_gpus_per_node=1"], 3 + 2 + 4),
        ("research", ["trainer.nnodes=2"], 3 * 16 + 2 + 4),
        ("research", ["transfer_queue.backend.SimpleStorage.num_data_storage_units=8"], 3 * 8 + 8 + 4),
    ],
)
def test_what_a_run_reserves(name: str, overrides: list[str], cpus: int):
    assert needs(composed(name, *overrides)).cpus == cpus


OWN_RAY = """
import gc
import ray
from verl_search.platform.ray_cluster import ENTER_PROCESS
runtime_env = {"worker_process_setup_hook": ENTER_PROCESS}
ray.init(address="local", num_cpus=3, num_gpus=1, include_dashboard=False, runtime_env=runtime_env)
print("cpus:", ray.cluster_resources()["CPU"], "collects at:", ray.get(ray.remote(lambda: gc.get_threshold()).remote()))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_cluster_is_asked_and_a_run_of_its_own_leaves_it_alone():
    """A cluster that `ray start` began here: RAY_ADDRESS joins it, and without it a run has its own processors."""
    port = free_port()
    command = f"ray start --head --block --port={port} --num-cpus=8 --num-gpus=1 --include-dashboard=false"
    command += f" --ray-client-server-port={free_port()} --min-worker-port=0 --max-worker-port=0"
    choice = RayChoice(f"127.0.0.1:{port}", "RAY_ADDRESS")
    # Ray makes sockets there, whose paths are short.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        environment = {"RAY_TMPDIR": folder, "HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        environment["RAY_raylet_start_wait_time_s"] = "120"  # on busy cores
        binary = Path(sys.executable).with_name("ray")
        head = start_process([str(binary), *command.split()[1:]], Path(folder) / "head.log", environment)
        try:
            deadline, found = time.monotonic() + 100, Path(folder) / "ray" / "ray_current_cluster"
            while not found.is_file():  # what ray.init would follow
                assert time.monotonic() < deadline and head.poll() is None, tail(Path(folder) / "head.log")
                time.sleep(0.2)
            check_ray(choice, NEEDS)
            with pytest.raises(UserError, match="the run needs 1 and 9"):
                check_ray(choice, NEEDS._replace(cpus=9))
            log = Path(folder) / "own.log"
            own = start_process([sys.executable, "-c", OWN_RAY], log, environment)
            assert own.wait(150) == 0, tail(log)
            assert "cpus: 3.0 collects at: (50000, 20, 20)" in log.read_text()
            check_ray(choice, NEEDS)
        finally:
            stop_process(head)


def test_the_folder_is_ray_s_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_default_system_temp_dir

    for given in ({}, {"TMPDIR": "/a"}, {"RAY_TMPDIR": "/b", "TMPDIR": "/a"}):
        for name in ("RAY_TMPDIR", "TMPDIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert str(ray_cluster.ray_folder(os.environ)) == get_default_system_temp_dir()
