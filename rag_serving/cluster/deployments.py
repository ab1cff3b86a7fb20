"""The retrieval server on a Ray cluster: `serve run rag_serving.ray_app:app config=… num_replicas=N`

Every replica is the whole application of app.py in a process of its own. Where `index_path` is a folder that
flashrag.retriever.index_shards wrote, each shard is a deployment of its own and the replicas hold only the encoder and
the corpus. Ray replaces a dead or broken process; docs/cluster.md describes the effect on clients meanwhile.
Does not cover: bm25 in shards (replicas only), scaling by load.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from flashrag.config import TOKEN_VARIABLE
from flashrag.errors import SearchError, UserError
from flashrag.preflight import enforce, examine
from flashrag.retriever import (
    PROCESS_VARIABLES,
    RETRIEVER_RULES,
    Retriever,
    RetrieverFacts,
    check_assets,
    is_sharded,
    load_retriever_from,
)
from flashrag.retriever.index_shards import ShardCard, read_shards
from flashrag.system.garbage import shorten_pauses
from rag_serving.app import create_app
from rag_serving.cluster.shards import RankedRows, Shard, merge
from rag_serving.metrics import labelled
from rag_serving.searcher import QueueFull, SearchUnavailable
from rag_serving.service import Status
from rag_serving.settings import ServerSettings, read_settings
from rag_serving.workers import ThreadWorkers

HEALTH_CHECK_PERIOD_S = 10
METRICS_TIMEOUT_S = 5
PAUSE_S = 0.1  # before a lost call is made again; a call to a shard without a live process waits by itself
SHARDS_SHARE_OF_TIME = 0.8  # a shard that is down is reported (503) before the request's own time is up (504)
REQUESTS_BESIDE_THE_QUEUE = 256  # cached, being searched or refused


class ClusterOptions(BaseModel):
    """The arguments of `serve run`, and `args` in a Ray Serve config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path = Field(description="the server's YAML file; its relative paths start at the working directory")
    num_replicas: int = Field(1, ge=1, le=1024, description="copies of the application, each on its own processor")
    num_retriever: int = Field(1, ge=1, le=256, description="searches that may run at once in each of them")
    num_cpus: float = Field(1, ge=0, description="cores that Ray reserves for each; the encoder's threads follow it")
    num_gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for each")
    shard_replicas: int = Field(1, ge=1, le=64, description="copies of each shard")
    shard_cpus: float = Field(1, ge=0, description="cores that Ray reserves for each; faiss's threads follow it")


def app(options: ClusterOptions) -> Application:
    """The application, for Ray Serve to place; raises UserError if its files do not fit together."""
    settings = _with_absolute_paths(read_settings(options.config))
    has_token = bool(os.environ.get(TOKEN_VARIABLE))
    sharded = is_sharded(settings)
    if sharded and settings.faiss_gpu:
        raise UserError("faiss_gpu: true was given, but shards are searched on the processors; set it to false")
    # Here, once, rather than in every process. The memory is that of other machines.
    rules = {name: rule for name, rule in RETRIEVER_RULES.items() if not name.endswith("memory")}
    enforce(examine(rules, RetrieverFacts(lambda: settings, sharded)))
    check_assets(settings, shards=sharded)
    shards = _shards(settings, options) if sharded else []
    actor = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus, "runtime_env": _process_variables()}
    replica = Replica.options(  # pyrefly: ignore
        num_replicas=options.num_replicas,
        ray_actor_options=actor,
        # The application refuses excess requests with its own answers; Ray's limit only bounds the memory.
        max_ongoing_requests=settings.max_queue_queries + REQUESTS_BESIDE_THE_QUEUE,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=2 * settings.request_timeout_s,
        graceful_shutdown_timeout_s=settings.request_timeout_s + settings.drain_timeout_s,
    )
    return replica.bind(settings, options.num_retriever, has_token, shards)


def _shards(settings: ServerSettings, options: ClusterOptions) -> list[Application]:
    assert settings.index_path is not None, "it is a folder"
    return [
        ShardReplica.options(  # pyrefly: ignore
            name=f"Shard-{card.shard}",
            num_replicas=options.shard_replicas,
            ray_actor_options={
                "num_cpus": options.shard_cpus,
                "memory": card.file_bytes,  # Ray places a shard only on a node with this much left
                "runtime_env": _process_variables(),
            },
            max_ongoing_requests=options.num_replicas * options.num_retriever + 1,
            health_check_period_s=HEALTH_CHECK_PERIOD_S,
        ).bind(settings.index_path, card, settings.faiss_mmap, settings.faiss_nprobe)
        for card in read_shards(settings.index_path)
    ]


def _process_variables() -> dict[str, dict[str, str]]:
    """The environment of the processes that search: set before they start, as they import faiss at once."""
    return {"env_vars": {name: os.environ.get(name, value) for name, value in PROCESS_VARIABLES.items()}}


@serve.deployment
class ShardReplica:
    """One copy of one shard."""

    def __init__(self, folder: Path, card: ShardCard, mmap: bool, nprobe: int | None) -> None:
        self._shard = Shard(folder, card, mmap, nprobe)
        self._total_rows = card.total_rows

    async def size(self) -> tuple[int, int]:
        """Rows of the whole corpus, and the dimension of its vectors."""
        return self._total_rows, self._shard.dimension

    async def rank_rows(self, vectors: np.ndarray, num: int) -> RankedRows:
        return await asyncio.to_thread(self._shard.rank_rows, vectors, num)

    async def check_health(self) -> None:
        await self.rank_rows(np.zeros((1, self._shard.dimension), dtype=np.float32), 1)


@serve.deployment
@serve.ingress()
class Replica:
    """One copy of the application. It is ready for requests once its retriever, and every shard, has answered."""

    async def __init__(
        self, settings: ServerSettings, num_retriever: int, has_token: bool, shards: list[DeploymentHandle]
    ) -> None:
        if has_token and not os.environ.get(TOKEN_VARIABLE):
            raise UserError(
                f"{TOKEN_VARIABLE} is set where the application was deployed, but not on this node; "
                "set it before `ray start` on every node"
            )
        self._settings = settings
        self._num_retriever = num_retriever
        self._probes = itertools.count()
        self._batches_seen = -1.0
        self._replicas: DeploymentHandle | None = None
        self._retriever = await asyncio.to_thread(self._load, shards)
        shorten_pauses()

    def _load(self, shards: list[DeploymentHandle]) -> Retriever:
        if not shards:
            return load_retriever_from(check_assets(self._settings))
        assets = check_assets(self._settings, shards=True)
        index = ShardedIndex(shards, SHARDS_SHARE_OF_TIME * self._settings.request_timeout_s)
        return load_retriever_from(assets, index)

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(self._settings, ThreadWorkers(lambda: self._retriever, self._num_retriever))
        self._app.add_middleware(StripPrefix)
        self._app.state.service.metrics_text = self._metrics_of_all
        return self._app

    async def metrics_text(self) -> tuple[str, str]:
        """This replica's name and figures."""
        text = await self._app.state.service.metrics.text()
        return serve.get_replica_context().replica_tag, text.decode()

    async def _metrics_of_all(self) -> bytes:
        """The figures of every replica, labelled: a scrape reaches any one, and counters must not jump between them."""
        if self._replicas is None:  # not before it is deployed, and once: each handle keeps a connection
            context = serve.get_replica_context()
            self._replicas = serve.get_deployment_handle(context.deployment, context.app_name)
        asked = self._replicas.broadcast("metrics_text")
        answers = await asked.results_async(timeout_s=METRICS_TIMEOUT_S, return_exceptions=True)
        return labelled(dict(answer for answer in answers if not isinstance(answer, BaseException)))

    async def check_health(self) -> None:
        """Raise unless searches end; after three failures Ray replaces this process."""
        service = self._app.state.service
        if service.status is Status.FAILED:
            raise RuntimeError("the retriever did not load")
        if service.status is Status.LOADING:
            return
        batches = service.metrics.registry.get_sample_value("rag_batch_seconds_count")
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await service.searcher.rank([f"health check {next(self._probes)}"], 1)
        except SearchUnavailable:
            pass  # a shard is down: not this process's fault
        except (QueueFull, TimeoutError) as error:  # busy is fine, as long as other searches end
            if batches == self._batches_seen:
                raise RuntimeError("no search has ended since the last check") from error
        self._batches_seen = batches


class ShardDown(SearchError):
    """A shard gave no answer in time."""


class ShardedIndex:
    """All shards, searched like one faiss index. It is made once every shard has loaded, however long that takes.

    Without one of them there is no answer, because a partial one would look complete. A call that is lost with its
    process is repeated until the time is up, on another copy of the shard or on its replacement. `handles` are in the
    order of the shards. Safe to call from several threads at once, never from an event loop.
    """

    def __init__(self, handles: Sequence[DeploymentHandle], timeout_s: float) -> None:
        self._handles = handles
        self._timeout_s = timeout_s
        self.metric_type = faiss.METRIC_INNER_PRODUCT  # no other index is split
        (self.ntotal, self.d), *_ = [handle.size.remote().result() for handle in handles]

    def search(self, vectors: np.ndarray, num: int) -> RankedRows:
        """The best `num` rows of all shards; raises ShardDown."""
        deadline = time.monotonic() + self._timeout_s
        calls = [partial(handle.rank_rows.remote, vectors, num) for handle in self._handles]
        responses = [call() for call in calls]  # all are asked before the first is waited for
        asked = enumerate(zip(calls, responses, strict=True))
        return merge([self._answer(shard, *one, deadline) for shard, one in asked], num)

    def _answer(self, shard: int, call: Callable[[], Any], response: Any, deadline: float) -> RankedRows:
        lost: Exception | None = None
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                return response.result(timeout_s=left_s)
            except TimeoutError as error:
                lost = lost or error
            except RayTaskError:  # the shard's own code raised: another copy would, too
                raise
            except (RayError, RayServeException) as error:
                lost = error
                time.sleep(PAUSE_S)
                response = call()
        response.cancel()
        raise ShardDown(f"shard {shard} gave no answer within {self._timeout_s:g} s") from lost


class StripPrefix:
    """Lets the application see its own paths under any route prefix, because its gate compares them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = scope.get("root_path", "")
        if prefix and scope["path"].startswith(prefix):
            scope = {**scope, "path": scope["path"][len(prefix) :] or "/"}
        await self.app(scope, receive, send)


def _with_absolute_paths(settings: ServerSettings) -> ServerSettings:
    """The settings with absolute paths, because processes on other nodes start in other folders."""
    keys = ("index_path", "corpus_path", "retrieval_model_path", "rerank_model_path")
    paths = {key: Path(value) for key in keys if (value := getattr(settings, key)) is not None}
    # A value that is not a path here names a package that carries a model, or is refused later.
    changes = {key: type(getattr(settings, key))(path.absolute()) for key, path in paths.items() if path.exists()}
    return settings.model_copy(update=changes)
