"""The Ray of a training run: one of its own on this machine, or a cluster that it joins because it was told to.

By itself `ray.init` joins any cluster that `ray start` began on this machine, and even the address of one that has
died, and then refuses num_cpus and num_gpus (ray 2.60). Here a run joins only what `ray_kwargs.ray_init.address` or
RAY_ADDRESS names. `check_ray` asks that cluster before anything starts, within seconds; Ray's own client waits half a
minute for a dead one, and ends the process without a token. Processes of a cluster have the environment of
`ray start`, so the variables that a run reads travel with it: `ray_init_settings`, and for keys `private_variables`.
Does not cover: what is asked and done on each node after `ray.init` (ray_nodes.py), Ray Serve (docs/cluster.md).
"""

import gc
import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from flashrag.errors import UserError
from flashrag.preflight import is_writable
from flashrag.system.network import direct_environment, is_this_machine, parse_address

OWN, ANY = "local", "auto"  # Ray's words
ADDRESS_KEY, ADDRESS_VARIABLE = "ray_kwargs.ray_init.address", "RAY_ADDRESS"
TIMEOUT_S = 5.0
CONNECT_S = 2.0  # to one node
# verl's placement groups reserve 3 CPUs for each training process, the TransferQueue one for its controller and each
# storage unit. Each actor beside them (task runner, agent loops, rollout servers) needs one that is free to be placed.
CPUS_PER_PROCESS, CPUS_BESIDE = 3, 4
# Variables that travel with a run. Ray prints and stores them.
FORWARDED = re.compile(
    r"(HF|HUGGINGFACE|SGLANG|TRANSFORMERS|VERL|VLLM|WANDB)_\w+"
    r"|OMP_(NUM_THREADS|WAIT_POLICY)|GOMP_SPINCOUNT|MALLOC_(MMAP_MAX|TRIM_THRESHOLD)_"
    r"|PYTHONPATH|TENSORBOARD_DIR|XDG_CACHE_HOME"
)
OF_ONE_NODE = ("VLLM_HOST_IP", "WANDB_SERVICE")  # the latter of one process
# Those that travel where Ray neither prints nor stores them. A proxy's address may hold a password.
PRIVATE = re.compile(r"\w*(KEY|TOKEN|SECRET|PASSWORD)|(https?|all)_proxy", re.IGNORECASE)
FOLDER_VARIABLE = "RESEARCH_FOLDER"  # the working folder of the command
# Functions that Ray calls first in each process of a run: of its own Ray, and of a cluster that it joins.
ENTER_PROCESS, ENTER_RUN = f"{__name__}.collect_rarely", "verl_search.platform.ray_nodes.enter_run"


def ray_folder(environ: Mapping[str, str]) -> Path:
    """Where a Ray of the run's own keeps its session, with its sockets (ray/_common/utils.py)."""
    return Path(environ.get("RAY_TMPDIR", environ.get("TMPDIR", "/tmp")))


class RayChoice(NamedTuple):
    """The address that `ray.init` gets, and the key or variable that gave it; "" if none did."""

    address: str
    source: str = ""

    @property
    def joins(self) -> bool:
        return self.address != OWN

    def note(self, nodes: Sequence["Node"]) -> str:
        """A line for the user on the cluster that the run joins, and the nodes that it told."""
        told = ", ".join(f"{node.address} ({node.gpus:g} GPUs, {node.cpus:g} CPUs)" for node in nodes)
        return f"training joins the Ray cluster at {self.address} ({self.source}): {told}"


class Needs(NamedTuple):
    """What a run reserves of a cluster."""

    nodes: int
    gpus_per_node: int
    cpus: int


class Node(NamedTuple):
    """A node that a cluster counts as living, and whether it answers: Ray finds a dead one late."""

    address: str
    gpus: float
    cpus: float
    answers: bool = True


def configured_ray(config: DictConfig) -> RayChoice:
    """The Ray for the run of a training config in this process's environment; raises `UserError` as `choose_ray`."""
    return choose_ray(os.environ, OmegaConf.select(config, ADDRESS_KEY), config.trainer.nnodes)


def needs(config: DictConfig) -> Needs:
    """What verl's processes reserve. More CPUs than Ray has are waited for without end; they are not threads."""
    trainer = config.trainer
    storage = config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    cpus = CPUS_PER_PROCESS * trainer.nnodes * trainer.n_gpus_per_node + storage + CPUS_BESIDE
    return Needs(trainer.nnodes, trainer.n_gpus_per_node, cpus)


def own_cpus(config: DictConfig, cores: int) -> int:
    """The CPUs that a Ray of the run's own is said to have: as many as are reserved, or as there are cores if more."""
    return max(cores, needs(config).cpus)


def choose_ray(environ: Mapping[str, str], configured: str | None, nodes: int) -> RayChoice:
    """The Ray for a run on so many nodes; raises `UserError` for an address that Ray's trainer cannot take."""
    given, source = (configured or "").strip(), ADDRESS_KEY
    if not given:
        given, source = environ.get(ADDRESS_VARIABLE, "").strip(), ADDRESS_VARIABLE
    if given in ("", OWN):
        if nodes > 1:
            raise UserError(
                f"trainer.nnodes={nodes} needs a Ray cluster, and no {ADDRESS_VARIABLE} names one: start it with "
                f"`ray start` on each node, then set {ADDRESS_VARIABLE}=HEAD:6379"
            )
        return RayChoice(OWN)
    if given != ANY:
        check_ray_address(given, source)
    return RayChoice(given, source)


def check_ray_address(address: str, source: str) -> None:
    """Raise `UserError` unless the address is host:port.

    A Ray client (ray://) is no node of its cluster, and Ray does not call `ENTER_RUN` for it.
    """
    expected = f"expected the address that `ray start` prints, e.g. 10.0.0.1:6379, or {ANY}, or {OWN}"
    if address.startswith(("http://", "https://")):
        raise UserError(f"{source}={address} is the address of Ray's dashboard, for `ray job submit`; {expected}")
    if address.startswith("ray://"):
        raise UserError(
            f"{source}={address}: give the command on a node of the cluster, not through Ray's client; {expected}"
        )
    try:
        parsed = parse_address(address if "://" in address else f"gcs://{address}", ("gcs",))
        if parsed.port is None:
            raise ValueError("it names no port")
    except ValueError as error:
        raise UserError(f"{source}={address!r} is not a Ray address ({error}); {expected}") from error


def check_ray(choice: RayChoice, needed: Needs) -> list[Node]:
    """The nodes of the chosen cluster; raises `UserError` if it does not answer, refuses us, or fails `check_nodes`.

    A Ray of the run's own needs a place for its token, and has no nodes yet.
    """
    if not choice.joins:
        check_own_token(os.environ)
        return []
    address = _found(choice)
    remedy = f"start the cluster (`ray start`), correct {choice.source}, or unset it for a Ray of the run's own"
    parsed = parse_address(f"gcs://{address}", ("gcs",))
    assert parsed.port is not None, "checked by choose_ray"
    try:
        socket.create_connection((parsed.host, parsed.port), TIMEOUT_S).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {choice.source}={choice.address} ({error}); {remedy}") from error
    nodes = _living_nodes(address, choice, remedy)
    check_nodes(nodes, choice, needed)
    return nodes


def check_own_token(environ: Mapping[str, str]) -> None:
    """Raise `UserError` where Ray could neither read nor make the token that it gives every cluster of its own."""
    if environ.get("RAY_AUTH_MODE", "token").lower() != "token" or environ.get("RAY_AUTH_TOKEN"):
        return
    given = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given or Path.home() / ".ray" / "auth_token")
    if not path.is_file() and (given or not is_writable(path.parent)):
        named = "RAY_AUTH_TOKEN_PATH" if given else "HOME"
        raise UserError(
            f"Ray keeps its token in {path} ({named}), which is not there and cannot be made; set RAY_AUTH_TOKEN to a "
            "secret of your choice, or RAY_AUTH_MODE=disabled on a machine of your own"
        )


def check_nodes(nodes: Sequence[Node], choice: RayChoice, needed: Needs) -> None:
    """Raise `UserError` unless this machine is one of the nodes, all answer, and they have what the run needs.

    Ray would wait for ever for processors that no node has, and start processes on a node that has just died.
    """
    where = f"the Ray cluster at {choice.source}={choice.address}"
    if not any(is_this_machine(node.address) for node in nodes):
        raise UserError(f"this machine is no node of {where}; run `ray start --address={choice.address}` here first")
    answering = [node for node in nodes if node.answers]
    silent = ", ".join(node.address for node in nodes if not node.answers)
    gpus, of_node = needed.gpus_per_node, CPUS_PER_PROCESS * needed.gpus_per_node
    able = sum(node.gpus >= gpus and node.cpus >= of_node for node in answering)
    cpus = sum(node.cpus for node in answering)
    if able < needed.nodes or cpus < needed.cpus:
        raise UserError(
            f"{where} has {able} nodes with {gpus} GPUs (without accelerators: slots for training processes) and "
            f"{of_node} CPUs, and {cpus:g} CPUs in all{silent and f' ({silent} does not answer)'}; the run needs "
            f"{needed.nodes} and {needed.cpus}. Start nodes with "
            f"`ray start --num-gpus={gpus} --num-cpus={-(-needed.cpus // needed.nodes)}` (these are not threads), "
            "or change trainer.n_gpus_per_node and trainer.nnodes"
        )
    if silent:
        raise UserError(
            f"{where} counts {silent} as living, but nothing answers there; start Ray on it again, or repeat the "
            "command in a minute or two, when Ray has dropped it"
        )


def answers(address: str, port: int) -> bool:
    """Whether a node takes connections; Ray itself waits for many seconds before it calls one dead."""
    with suppress(OSError):
        socket.create_connection((address, port), CONNECT_S).close()
        return True
    return False


def collect_rarely() -> None:
    """Let Python look for garbage at every 50,000th object, not every 700th.

    Importing torch, verl and vLLM makes objects that stay. Looking through them took a fifth of the time of importing,
    and importing is most of the time that a run's eight processes take to start.
    """
    gc.set_threshold(50_000, 20, 20)


def ray_init_settings(choice: RayChoice, environ: Mapping[str, str]) -> dict[str, Any]:
    """The keys of `ray_kwargs.ray_init` that the choice fixes."""
    if not choice.joins:
        return {"address": OWN, "runtime_env.worker_process_setup_hook": ENTER_PROCESS}
    return {
        "address": choice.address,
        "num_cpus": None,
        "num_gpus": None,
        "runtime_env.env_vars": forwarded_variables(environ),
        "runtime_env.worker_process_setup_hook": ENTER_RUN,
    }


def forwarded_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that Ray gives each process of the run; raises `UserError` for one that Ray would change.

    >>> forwarded_variables({"VLLM_CPU_KVCACHE_SPACE": "1", "WANDB_API_KEY": "k", "VLLM_HOST_IP": "10.0.0.1"}).keys()
    dict_keys(['VLLM_CPU_KVCACHE_SPACE', 'RESEARCH_FOLDER'])
    """
    found = {
        name: value
        for name, value in environ.items()
        if FORWARDED.fullmatch(name) and not PRIVATE.fullmatch(name) and name not in OF_ONE_NODE
    }
    if "PYTHONPATH" in found:
        found["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, found["PYTHONPATH"].split(os.pathsep)))
    found |= direct_environment(environ) | {FOLDER_VARIABLE: str(Path.cwd())}
    for name, value in found.items():
        if "$" in value:
            raise UserError(
                f"{name}={value!r} cannot travel to the processes of a Ray cluster, which replaces what follows a $; "
                "give folders without one"
            )
    return found


def private_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Keys, tokens and proxies, for the processes of the run that use them; Ray's own are left out.

    >>> private_variables({"RESEARCH_SERVER_TOKEN": "t", "RAY_AUTH_TOKEN": "r", "https_proxy": "p", "HOME": "/root"})
    {'RESEARCH_SERVER_TOKEN': 't', 'https_proxy': 'p'}
    """
    return {name: value for name, value in environ.items() if PRIVATE.fullmatch(name) and not name.startswith("RAY_")}


def _found(choice: RayChoice) -> str:
    """The address behind "auto"; any other as it is."""
    if choice.address != ANY:
        return choice.address
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address(ANY) or ANY
    except ConnectionError as error:
        raise UserError(
            f"{choice.source}={ANY}, but no Ray cluster runs on this machine; `ray start --head` begins one"
        ) from error


def _living_nodes(address: str, choice: RayChoice, remedy: str) -> list[Node]:
    """What the cluster's control service counts as living; raises `UserError` if it refuses, or is something else."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
    from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

    _check_token(choice)
    try:
        with init_grpc_channel(address, GLOBAL_GRPC_OPTIONS) as channel:
            asked = gcs_service_pb2.GetAllNodeInfoRequest(state_filter=gcs_pb2.GcsNodeInfo.ALIVE)
            answer = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(asked, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(
                f"the Ray cluster at {choice.source}={choice.address} refuses our token; set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's (`ray get-auth-token` on its head)"
            ) from error
        raise UserError(
            f"{choice.source}={choice.address} answers, but not as a Ray cluster ({error.code().name}); {remedy}"
        ) from error
    return [
        Node(
            node.node_manager_address,
            node.resources_total.get("GPU", 0.0),
            node.resources_total.get("CPU", 0.0),
            answers(node.node_manager_address, node.node_manager_port),
        )
        for node in answer.node_info_list
    ]


def _check_token(choice: RayChoice) -> None:
    """Raise `UserError` if Ray is to use a token and there is none: its client would end this process."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._raylet import AuthenticationTokenLoader
    from ray.exceptions import AuthenticationError

    missing = "there is none in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    try:
        if not is_token_auth_enabled() or AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
            return
    except AuthenticationError:
        missing = f"RAY_AUTH_TOKEN_PATH={os.environ.get('RAY_AUTH_TOKEN_PATH')} holds none"
    raise UserError(
        f"RAY_AUTH_MODE=token wants a token for {choice.source}={choice.address}, and {missing}; set RAY_AUTH_TOKEN to "
        "the cluster's (`ray get-auth-token` on its head)"
    )
