"""A run on the nodes of the Ray cluster that it has joined: what each node must have, and where keys go.

Does not cover: which cluster a run joins, and what is asked of it before `ray.init` (ray_cluster.py).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashrag.errors import UserError
from flashrag.system.network import interface_of
from verl_search.platform.ray_cluster import FOLDER_VARIABLE, answers, collect_rarely, private_variables

ANSWER_S = 120.0
QUEUE = {"name": "TransferQueueController", "namespace": "transfer_queue"}  # that of every run of verl
RUNNER = {"name": "SearchTaskRunner", "namespace": "verl_search"}  # ours, there before the queue is
NOT_ALONE = (
    "another run trains on this Ray cluster, where verl has one queue of episodes, in which those of two runs would "
    "mix; wait for the other's end, or give this run a cluster of its own"
)
REMEDY = (
    "Every node needs ReSearch set up under the same path, the same folders (a shared file system), and the way to the "
    "retrieval server: docs/training.md, Several nodes"
)


def enter_run() -> None:
    """Ray calls this first in each process of a run that joins: relative paths mean the same as to the driver.

    A node without the folder is told by `check_each_node`. Gloo would listen where the machine's name leads, which on
    many machines is 127.0.1.1; here it listens where the other nodes reach this one.
    """
    collect_rarely()
    if (folder := Path(os.environ[FOLDER_VARIABLE])).is_dir():
        os.chdir(folder)
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """The node of the driver, whose files and keys the command named."""
    return on_node(ray.get_runtime_context().get_node_id())


def hand_over(variables: Mapping[str, str], workers: Sequence[Any]) -> None:
    """Set environment variables in actors. Ray lists and prints the environment of a process, but no arguments."""
    ray.get([worker.__ray_call__.remote(_take, variables) for worker in workers])


def _take(_: Any, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)


def living_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def silent_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The addresses of those nodes that do not answer."""
    return [
        node["NodeManagerAddress"] for node in nodes if not answers(node["NodeManagerAddress"], node["NodeManagerPort"])
    ]


def check_alone() -> None:
    """Raise `UserError` if another run trains on the cluster: both would put their episodes into one TransferQueue."""
    if QUEUE in ray.util.list_named_actors(all_namespaces=True):
        raise UserError(NOT_ALONE)


def check_each_node(config: Any) -> None:
    """Raise `UserError` unless each of several nodes has what the run needs; seconds, before any engine starts."""
    nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in living_nodes()}
    if len(nodes) < 2:
        return
    save_path, search = Path(config.trainer.default_local_dir).absolute(), config.search
    named = [config.actor_rollout_ref.model.path, str(search.reward).rpartition(":")[0], search.prompt_file]
    paths = [Path.cwd(), *(Path(name).absolute() for name in named if name and Path(name).exists())]
    variables = private_variables(os.environ)
    save_path.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(prefix=".seen-by-each-node-", dir=save_path) as mark:
        asked = {
            address: problems_here.options(scheduling_strategy=on_node(node_id)).remote(
                [*paths, Path(mark.name)], search.url, variables
            )
            for address, node_id in nodes.items()
        }
        problems = {address: _answer(answer) for address, answer in asked.items()}
    if told := [f"{address}: {'; '.join(some)}" for address, some in problems.items() if some]:
        raise UserError("\n".join(["nodes of the Ray cluster lack what the run needs", *told, REMEDY]))


@ray.remote(num_cpus=0, max_retries=0)
def problems_here(paths: Sequence[Path], url: str, variables: Mapping[str, str]) -> list[str]:
    """What this node lacks: paths, and the way to a healthy retrieval server."""
    from flashrag.client import check_server

    os.environ.update(variables)
    problems = [f"{path} is not there" for path in paths if not path.exists()]
    try:
        check_server(url)
    except UserError as error:
        problems.append(str(error))
    return problems


def _answer(answer: Any) -> list[str]:
    try:
        return ray.get(answer, timeout=ANSWER_S)
    except (RayError, TimeoutError) as error:
        return [f"a process of the run cannot start there: {' '.join(str(error).split())}"]
