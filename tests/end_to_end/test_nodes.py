"""One run on two Ray nodes that were started beforehand, until one of them dies. Minutes on two cores.

The command runs in a folder of its own, with relative paths, and only there the environment is set, keys among it. The
nodes have addresses of their own, but one disk, as machines with a shared file system.
"""

import socket
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from flashrag.config import TOKEN_VARIABLE
from flashrag.system.local_server import LOOPBACK, free_port, serving
from flashrag.system.network import is_loopback, own_addresses
from tests.end_to_end.test_stopping import BASE_MODEL, BATCH, ENVIRONMENT, GROUP, REPOSITORY, make_data
from tests.nodes import OTHER, TOKEN, TwoNodes, processes_of, two_nodes
from tests.runs import Run, training
from verl_search.rollout.trajectories import read_trajectories, trajectory_files
from verl_search.trainer.run_folder import last_step, read_metrics
from verl_search.trainer.stopping import EXIT_STOPPED

pytestmark = pytest.mark.slow
KEYS = {TOKEN_VARIABLE: "the-servers-token", "WANDB_API_KEY": "the-key-of-wandb-which-is-40-letters-long"}


def command(url: str, *more: str) -> list[str]:
    arguments = [
        *("--config_name", "cpu", "--actor_model_path", "model", "--search_url", url, "--save_path", "run"),
        "actor_rollout_ref.rollout.dtype=float32",  # the same figures on every processor
        *("--train_data_path", "data/train.parquet", "--dev_data_path", "data/test.parquet", "--nnodes", 2),
        *("--n_gpus_per_node", 1, "--train_batch_size", BATCH, "--ppo_mini_batch_size", BATCH, "--rollout_n", GROUP),
        *("--max_prompt_length", 300, "--max_response_length", 300, "--save_freq", 2, "--test_freq", -1),
        *("trainer.val_before_train=false", "data.dataloader_num_workers=0", "search.top_n=2", "search.max_searches=3"),
        *("actor_rollout_ref.rollout.agent.num_workers=2", "search.max_result_tokens=200", *more),
    ]
    return [sys.executable, "-m", "training.launch", *map(str, arguments)]


@pytest.mark.timeout(1800)  # more than its waits together
def test_a_run_on_two_nodes_until_one_of_them_dies(tmp_path: Path) -> None:
    make_data(tmp_path)
    (tmp_path / "model").symlink_to(BASE_MODEL)
    port = free_port()
    host = next((one for one in own_addresses() if not is_loopback(one) and ":" not in one), socket.gethostname())
    server = [sys.executable, f"{REPOSITORY}/rag_serving/serving.py", "--config", f"{tmp_path}/serving.yaml"]
    server += ["--host", "0.0.0.0", "--port", str(port), "--num_retriever", "1"]
    with two_nodes() as nodes, serving(server, f"http://{LOOPBACK}:{port}", tmp_path / "server.log", environment=KEYS):
        environment = {**ENVIRONMENT, **nodes.environment, **KEYS, "WANDB_MODE": "offline"}

        def started(url: str, *more: str) -> AbstractContextManager[Run]:
            return training(command(url, *more), tmp_path, tmp_path / "run", environment)

        with started(f"http://{LOOPBACK}:{port}", "--check") as refused:
            assert "is another machine on each of the 2 nodes of the Ray cluster" in refused.wait(300)
        assert refused.returncode == 2

        with started(f"http://{host}:{port}") as run:
            run.wait_for_step(3)
            assert_places(nodes)
            nodes.kill_other()
            console = run.wait(300)
        assert run.returncode == EXIT_STOPPED, console
        assert "training joins the Ray cluster at 127.0.0.2:" in console
        assert f"error: the Ray node {OTHER} does not answer: " in console
        assert f"To go on: {sys.executable} -m training.launch --config_name cpu" in console
        assert_results(tmp_path / "run")
        assert_no_key_is_written(nodes.folder, tmp_path / "run")

        with started(f"http://{host}:{port}") as again:
            refusal = again.wait(300)
        assert "has 1 nodes with 1 GPUs" in refusal and f"({OTHER} does not answer)" in refusal
        assert again.returncode == 2


def assert_places(nodes: TwoNodes) -> None:
    """What runs where, and that no process of Ray's was started with a key in its environment."""
    names = []
    for node in (nodes.head, nodes.other):
        found = {process: (process.cmdline() or [""])[0].partition(".")[0] for process in processes_of(node)}
        names.append(set(found.values()))
        for process, name in found.items():
            if name.startswith("ray::"):
                assert not set(KEYS.values()) & set(process.environ().values()), name
    both = {"ray::WorkerDict", "ray::vLLMHttpServer", "ray::AgentLoopWorkerTQ"}
    assert both | {"ray::SearchTaskRunner"} <= names[0]
    assert both <= names[1] and "ray::SearchTaskRunner" not in names[1]


def assert_results(folder: Path) -> None:
    """The checkpoint's shards, the trajectories and the metrics of both nodes are in the folder of the run."""
    assert last_step(folder) in (2, 3)
    shards = {path.name for path in (folder / "global_step_2" / "actor").glob("model_*.pt")}
    assert shards == {"model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"}
    for step in (1, 2, 3):
        assert len(trajectory_files(folder / "trajectories", "train", step)) == 2, "one of each node's worker"
        trajectories = list(read_trajectories(folder / "trajectories", "train", step))
        assert len(trajectories) == BATCH * GROUP
        assert all(trajectory.end_reason != "search_failed" for trajectory in trajectories)
    metrics = dict(read_metrics(folder / "metrics"))
    assert {1, 2, 3} <= set(metrics)
    assert all(step["rollout/searches"] > 0.0 for step in metrics.values())
    assert list(folder.glob("tensorboard/events*")) and list(folder.glob("wandb/offline-run-*"))


def assert_no_key_is_written(*folders: Path) -> None:
    """Neither in Ray's logs, nor in the run's."""
    texts = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(texts) > 20
    for key in (TOKEN, *KEYS.values()):
        assert not any(key.encode() in text for text in texts)
