"""The way to an address: straight for this machine, else by the environment's proxy; real proxies carry or refuse."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given, settings
from hypothesis import strategies as st

from flashrag.client import RetrievalClient, check_server
from flashrag.errors import GenerationError, SearchError, UserError
from flashrag.generator import GeneratorSettings, load_generator
from flashrag.generator.openai_completion import OpenAICompletionGenerator
from flashrag.system.local_server import serving
from flashrag.system.network import (
    ask,
    client_settings,
    direct_environment,
    interface_of,
    is_loopback,
    is_this_machine,
    own_addresses,
    proxy_for,
)
from flashrag.system.processes import start_process
from tests.proxies import HttpProxy, SocksProxy, clear_proxies, running

REPOSITORY = Path(__file__).parents[3]
VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
FAR = "http://retrieval.test:8000"  # known to no name server


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_proxies(monkeypatch)


def server() -> FastAPI:
    """A retrieval server and a model server in one, as far as these tests ask."""
    app = FastAPI()

    @app.get("/health")
    @app.get("/metrics")
    def healthy() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/search")
    async def search(request: Request) -> list[dict[str, str]]:
        return [{"id": "1", "contents": (await request.json())["query"]}]

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"data": [{"id": "model"}]}

    @app.post("/v1/chat/completions")
    def chat() -> dict[str, Any]:
        return {"choices": [{"message": {"content": "42"}, "finish_reason": "stop"}], "usage": {}}

    return app


@pytest.fixture(scope="module")
def near_url(serve: Callable[[Any], str]) -> str:
    return serve(server())


@pytest.fixture
def refusing() -> Iterator[HttpProxy]:
    with running(HttpProxy(status=502)) as proxy:
        yield proxy


def generator_settings(url: str) -> GeneratorSettings:
    values = {"framework": "openai_chat", "sgl_remote_url": url, "generator_model": "model", "generator_max_retries": 0}
    return GeneratorSettings.model_validate(values)


async def answers(url: str) -> list[str]:
    """What the retrieval client and the model client get at an address."""
    async with RetrievalClient(url, max_attempts=1) as client:
        (document,) = await client.search("How many?")
    generator = load_generator(generator_settings(url))
    assert isinstance(generator, OpenAICompletionGenerator)
    answer = await generator.chat([{"role": "user", "content": "How many?"}])
    await generator.aclose()
    return [document.contents, answer.text]


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("no_proxy", [None, "example.org"])
@pytest.mark.asyncio
async def test_loopback_never_goes_through_a_proxy(
    variable: str, no_proxy: str | None, refusing: HttpProxy, near_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, refusing.url)
    if no_proxy:
        monkeypatch.setenv("NO_PROXY", no_proxy)
    check_server(near_url)
    assert await answers(near_url.replace("127.0.0.1", "localhost")) == ["How many?", "42"]
    assert refusing.asked == []


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1", "socks4://proxy:1", "htp://proxy", "proxy:no-port"])
@pytest.mark.asyncio
async def test_loopback_works_whatever_the_proxy_variables_hold(
    value: str, near_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ALL_PROXY", value)
    check_server(near_url)
    assert await answers(near_url) == ["How many?", "42"]


@pytest.mark.asyncio
async def test_other_addresses_go_through_the_proxy(near_url: str, monkeypatch: pytest.MonkeyPatch):
    with running(HttpProxy(target=near_url)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        check_server(FAR)
        assert await answers(FAR) == ["How many?", "42"]
    assert f"POST {FAR}/search" in proxy.asked and f"POST {FAR}/v1/chat/completions" in proxy.asked


@pytest.mark.asyncio
async def test_other_addresses_go_through_a_socks_proxy(near_url: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("socksio")
    with running(SocksProxy(near_url)) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url.replace("socks5", "socks5h"))
        check_server(FAR)
        assert await answers(FAR) == ["How many?", "42"]
    assert set(proxy.asked) == {"retrieval.test"}


def test_a_socks_proxy_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@proxy:1080")
    with pytest.raises(UserError, match=r"ALL_PROXY='proxy:1080' names a SOCKS proxy.*pip install socksio"):
        check_server(FAR)


@pytest.mark.parametrize("status", [403, 407, 502, 503])
@pytest.mark.asyncio
async def test_a_proxy_that_answers_itself_is_named(status: int, monkeypatch: pytest.MonkeyPatch):
    with running(HttpProxy(status=status)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:secret@"))
        told = f"through the proxy {proxy.url} (from HTTP_PROXY): if retrieval.test can be reached without it"
        with pytest.raises(UserError) as health:
            check_server(FAR)
        with pytest.raises(UserError) as models:
            load_generator(generator_settings(FAR))
        with pytest.raises(SearchError) as search:
            async with RetrievalClient(FAR, max_attempts=1) as client:
                await client.search("q")
        generator = OpenAICompletionGenerator(generator_settings(FAR), "model", None, [], "key")
        with pytest.raises(GenerationError) as generation:
            await generator.chat([])
        await generator.aclose()
    for error in (health, models, search, generation):
        assert told in str(error.value) and "secret" not in str(error.value), error
        assert str(status) in str(error.value)


@pytest.mark.asyncio
async def test_a_proxy_that_is_not_there_is_named(closed_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", closed_url)
    with pytest.raises(UserError, match=rf"proxy {closed_url} \(from ALL_PROXY\)"):
        check_server(FAR)
    with pytest.raises(SearchError, match=rf"proxy {closed_url} \(from ALL_PROXY\)"):
        async with RetrievalClient(FAR, max_attempts=1) as client:
            await client.search("q")


def test_a_request_over_https_names_the_proxy_that_refuses_the_tunnel(
    refusing: HttpProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTPS_PROXY", refusing.url)
    with pytest.raises(UserError, match=r"502 .*\(from HTTPS_PROXY\)"):
        check_server(FAR.replace("http", "https"))
    assert refusing.asked[0] == "CONNECT retrieval.test:8000"


def test_a_client_without_a_proxy_keeps_the_environments_certificates(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    with httpx.Client(**client_settings("https://127.0.0.1")) as client:
        assert client.trust_env  # SSL_CERT_FILE counts
        assert client._transport_for_url(httpx.URL("https://127.0.0.1")) is client._transport


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("foo:bar:baz", "Invalid port"),
        ("htp://proxy", "begins with none of http://, https://, socks5://, socks5h://"),
        ("socks4://proxy:1080", "begins with none of"),
        ("http://", "names no host"),
        ("http:/proxy:3128", "/proxy:3128 is no part of one"),
        ("http://pro xy:3128", "names no host"),
        ("http://proxy:99999", "99999 is no port"),
        ("http://user:pass/word@proxy:3128", "need %-escapes"),
    ],
)
def test_a_malformed_proxy_is_refused_at_the_start(value: str, reason: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", value)
    for start in (lambda: RetrievalClient(FAR), lambda: generator_settings(FAR)):
        with pytest.raises(
            UserError, match=rf"http_proxy='.*' is not a proxy's address \(.*{reason}.*expected"
        ) as error:
            start()
        assert "pass" not in str(error.value).replace("password", "")


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("http://a.test", {}, None),
        ("http://a.test", {"http_proxy": "p:1", "HTTP_PROXY": "q:1"}, ("http_proxy", "http://p:1")),
        ("http://a.test", {"http_proxy": "", "HTTP_PROXY": "q:1"}, None),
        ("http://a.test", {"http_proxy": "", "ALL_PROXY": "q:1"}, ("ALL_PROXY", "http://q:1")),
        ("http://a.test", {"https_proxy": "p:1"}, None),
        ("https://a.test", {"https_proxy": "http://p:1"}, ("https_proxy", "http://p:1")),
        ("https://a.test", {"http_proxy": "q:1", "all_proxy": "p:1"}, ("all_proxy", "http://p:1")),
    ],
)
def test_the_variable_that_counts(url: str, environ: dict[str, str], expected: Sequence[str] | None):
    assert proxy_for(url, environ) == expected


@pytest.mark.parametrize(
    ("no_proxy", "host", "straight"),
    [
        ("*", "a.test", True),
        ("b.test, *", "a.test", True),
        ("a.test", "a.test", True),
        ("a.test", "x.a.test", True),
        (".a.test", "a.test", True),
        ("*.a.test", "x.a.test", True),
        ("A.TEST", "a.test", True),
        ("b.test a.test", "a.test", True),
        ("a.test:8000", "a.test", True),
        ("a.test:80", "a.test", False),
        ("http://a.test", "a.test", True),
        ("a.test", "ba.test", False),
        ("10.0.0.0/8", "10.2.3.4", True),
        ("10.0.0.0/8", "11.2.3.4", False),
        ("10.2.3.4", "10.2.3.4", True),
        ("fd00::/8", "[fd00:1::1]", True),
        ("[fd00:1::1]", "[fd00:1::1]", True),
    ],
)
def test_no_proxy_excludes_names_addresses_and_networks(no_proxy: str, host: str, straight: bool):
    assert (proxy_for(f"http://{host}:8000", {"http_proxy": "p:1", "NO_PROXY": no_proxy}) is None) == straight


@pytest.mark.parametrize("host", ["127.1", "127.8.8.8", "0.0.0.0", "[::ffff:127.0.0.1]", "app.localhost", "LOCALHOST."])
def test_every_spelling_of_this_machine_is_known(host: str):
    assert is_this_machine(host)
    assert is_loopback(host)


def test_the_interfaces_addresses_are_this_machines():
    assert {"127.0.0.1"} <= set(own_addresses())
    assert all(map(is_this_machine, own_addresses()))
    assert not is_this_machine("192.0.2.200") or "192.0.2.200" in own_addresses()
    assert (interface_of("127.0.0.1"), interface_of("192.0.2.200")) == ("lo", None)
    assert not is_loopback(socket.gethostname()) and not is_loopback("192.0.2.200")


@settings(deadline=None)
@given(st.text(alphabet="abc:/@[]%.*, \t0", max_size=20), st.text(alphabet="abc:/.*[], 0129", max_size=20))
def test_any_text_in_the_variables_gives_a_proxy_none_or_one_line(value: str, no_proxy: str):
    try:
        proxy = proxy_for(FAR, {"http_proxy": value, "no_proxy": no_proxy})
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert proxy is None or httpx.Client(proxy=proxy.url).close() is None


def test_child_processes_know_which_addresses_need_no_proxy():
    assert direct_environment({"NO_PROXY": "a.test"}) == {}
    told = direct_environment({"HTTPS_PROXY": "p:1", "NO_PROXY": "a.test, 10.0.0.0/8"})
    assert told["no_proxy"] == told["NO_PROXY"]
    assert told["no_proxy"].startswith("a.test,10.0.0.0/8,localhost,127.0.0.1,::1,0.0.0.0,")
    assert set(own_addresses()) <= set(told["no_proxy"].split(","))
    assert direct_environment({"all_proxy": "p:1", "no_proxy": "*"})["NO_PROXY"] == "*"


def test_a_child_process_reaches_its_siblings_straight(
    refusing: HttpProxy, near_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As an engine's own warm-up request does, with the standard library's client."""
    monkeypatch.setenv("http_proxy", refusing.url)
    code = f"import urllib.request; print(urllib.request.urlopen('{near_url}/health').read().decode())"
    assert start_process([sys.executable, "-c", code], tmp_path / "log").wait(30) == 0
    assert json.loads((tmp_path / "log").read_text()) == {"status": "healthy"}
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert "502" in without.stderr


def test_our_own_servers_are_waited_for_without_a_proxy(
    refusing: HttpProxy, near_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", refusing.url)
    with serving([sys.executable, "-c", "input()"], near_url, tmp_path / "log", timeout_s=1.0):
        pass
    assert refusing.asked == []
    assert ask(f"{near_url}/health", timeout_s=5.0).is_success


def test_every_client_of_ours_follows_the_rule():
    """httpx by itself reads the proxy variables for loopback too, and takes no unusable one."""
    made = re.compile(r"\bhttpx\.(get|post|request|stream|Client|AsyncClient)\(|\burlopen\(|\brequests\.(get|post)\(")
    rooms = ("flashrag/flashrag", "verl/verl_search", "rag_serving", "evaluation", "training", "scripts")
    free = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for room in rooms
        for path in (REPOSITORY / room).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if made.search(line) and "client_settings(" not in line and "trust_env=False" not in line
    ]
    assert free == []
