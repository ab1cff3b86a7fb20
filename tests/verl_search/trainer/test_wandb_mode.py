"""The look at wandb before a run: a real server in each state, real proxies, and wandb's own settings."""

import base64
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from fastapi import FastAPI, Request, Response

from flashrag.errors import UserError
from tests.proxies import HttpProxy, clear_proxies, running
from verl_search.trainer import wandb_mode
from verl_search.trainer.wandb_mode import WandbChoice, ask_wandb, choose_wandb

KEY = "k" * 40
LOGGERS = ["console", "file", "tensorboard", "wandb"]
FAR = "http://wandb.test"


def wandb_server() -> FastAPI:
    app = FastAPI()

    @app.post("/graphql")
    def graphql(request: Request) -> Response:
        right = base64.b64encode(f"api:{KEY}".encode()).decode()
        known = request.headers.get("authorization") == f"Basic {right}"
        return Response('{"data": {"viewer": {"id": "1"}}}', 200 if known else 401, media_type="application/json")

    return app


@pytest.fixture(scope="module")
def server(serve: Callable[[Any], str]) -> str:
    return serve(wandb_server())


@pytest.fixture(autouse=True)
def own_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """wandb reads the variables once, until it is torn down."""
    clear_proxies(monkeypatch)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_HTTPS_PROXY", "WANDB_HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    yield
    wandb.teardown()


def choice(url: str, monkeypatch: pytest.MonkeyPatch, key: str = KEY, proxy: str | None = None) -> WandbChoice:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_DIR", "/runs/a")
    wandb.teardown()
    return choose_wandb(os.environ, LOGGERS, proxy)


def test_a_key_that_the_server_knows_is_used(server: str, monkeypatch: pytest.MonkeyPatch):
    assert choice(server, monkeypatch) == WandbChoice()
    assert choice(server + "/", monkeypatch) == WandbChoice()


@pytest.mark.parametrize(
    ("environ", "loggers", "mode"),
    [
        ({}, LOGGERS, "offline"),
        ({"WANDB_API_KEY": " "}, LOGGERS, "offline"),
        ({"WANDB_API_KEY": KEY}, ["console"], None),
        ({"WANDB_API_KEY": KEY}, "console", None),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, LOGGERS, None),
        ({"WANDB_API_KEY": "short", "WANDB_MODE": "disabled"}, LOGGERS, None),
    ],
)
def test_nothing_is_asked_without_need(environ: dict[str, str], loggers: Any, mode: str | None):
    assert choose_wandb(environ, loggers, None) == WandbChoice(mode)


@pytest.mark.parametrize("key", ["x" * 40, "short", "white space" * 4, "a\nb" * 20])
def test_a_refused_key_is_one_line(key: str, server: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"key in WANDB_API_KEY.* unset it to keep the metrics offline") as error:
        choice(server, monkeypatch, key)
    assert "\n" not in str(error.value) and key not in str(error.value)


def test_without_a_network_the_metrics_stay_offline(closed_url: str, monkeypatch: pytest.MonkeyPatch):
    started = time.monotonic()
    mode, note = choice(closed_url, monkeypatch)
    assert mode == "offline"
    assert f"{closed_url} cannot be reached: ConnectError" in note
    assert note.endswith("to upload them later: wandb sync /runs/a/wandb/offline-run-*")
    assert time.monotonic() - started < 5


def test_a_server_that_stalls_is_left_after_seconds(serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch):
    app = FastAPI()

    @app.post("/graphql")
    def stall() -> None:
        time.sleep(0.5)

    monkeypatch.setattr(wandb_mode, "TIMEOUT_S", 0.2)
    assert "ReadTimeout" in ask_wandb(serve(app), KEY, {})


def test_another_server_and_a_broken_one_are_offline(serve: Callable[[Any], str]):
    app = FastAPI()

    @app.post("/broken/graphql")
    def broken() -> Response:
        return Response(status_code=503)

    url = serve(app)
    assert ask_wandb(f"{url}/broken", KEY, {}).endswith("/broken/graphql answered 503")
    assert ask_wandb(url, KEY, {}).endswith("/graphql answered 404")


def test_wandbs_own_proxies_count_and_all_proxy_does_not(server: str, monkeypatch: pytest.MonkeyPatch):
    with running(HttpProxy(target=server)) as proxy, running(HttpProxy(status=403)) as refusing:
        assert ask_wandb(FAR, KEY, {"http_proxy": proxy.url}) == ""
        monkeypatch.setenv("WANDB_HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", refusing.url)
        assert choice(FAR, monkeypatch) == WandbChoice()
        assert refusing.asked == []
        monkeypatch.setenv("WANDB_HTTP_PROXY", refusing.url)
        assert f"answered 403; the request went through the proxy {refusing.url}" in choice(FAR, monkeypatch).note
        note = choice("https://wandb.test", monkeypatch, proxy=refusing.url).note
        assert refusing.asked[-1] == "CONNECT wandb.test:443" and "cannot be reached: ProxyError 403" in note
    monkeypatch.delenv("WANDB_HTTP_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "htp://proxy")
    assert "HTTP_PROXY='htp://proxy' is not a proxy's address" in choice(FAR, monkeypatch).note


def test_settings_that_wandb_refuses_are_one_line(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"^wandb refuses WANDB_BASE_URL: .+") as error:
        choice("not an address", monkeypatch)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("WANDB_HTTPS_PROXY", "socks4://user:secret@proxy")
    with pytest.raises(UserError, match=r"^wandb refuses WANDB_HTTPS_PROXY: .+") as error:
        choice(FAR, monkeypatch)
    assert "secret" not in str(error.value)
