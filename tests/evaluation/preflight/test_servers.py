"""What servers of several kinds say about themselves, and what becomes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from evaluation.command_line import load_settings, parse_command_line
from evaluation.preflight import request as requests
from evaluation.preflight import servers
from evaluation.preflight.servers import (
    SAMPLE,
    Reply,
    ServedModel,
    ask_for_a_token,
    ask_model_server,
)
from evaluation.settings import EvalSettings
from flashrag.errors import UserError
from flashrag.generator.server import ServerLimits
from flashrag.reward import JudgeReply, JudgeSettings, ask_judge
from tests.proxies import HttpProxy, clear_proxies, running

ROOT = Path(__file__).resolve().parents[3]
SERVED = ServedModel("m", ServerLimits(), None, None, None)
REQUEST = requests.Request("complete", [1, 2], 8, ((),), {"log_probs": True})


def settings(**keys: str) -> EvalSettings:
    given = {"method_name": "research", "dataset_name": "q.jsonl", "generator_model": "m", **keys}
    config = ["--config_path", str(ROOT / "evaluation" / "eval_config.yaml")]
    return load_settings(
        parse_command_line([*config, *(part for pair in given.items() for part in (f"--{pair[0]}", pair[1]))])
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "ANSWER_S", 0.3)


def model_server(**card: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"data": [{"id": "m", "max_model_len": 8192, **card}]}

    return app


def with_completions(answer: Callable[[], Response]) -> FastAPI:
    app = model_server()
    app.post("/v1/completions")(answer)
    return app


def test_a_server_that_says_everything(serve: Callable[[Any], str]):
    app = model_server(root="/models/m")

    @app.get("/version")
    def version() -> dict[str, str]:
        return {"version": "0.28.0"}

    @app.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await request.json()
        assert body == {"model": "m", "prompt": SAMPLE, "add_special_tokens": False}
        return {"count": 2, "tokens": [7, 8]}

    served = ask_model_server(settings(sgl_remote_url=serve(app)))
    assert served == ServedModel("m", ServerLimits(8192), "/models/m", "0.28.0", [7, 8])


def test_a_server_that_says_the_least(serve: Callable[[Any], str]):
    assert ask_model_server(settings(sgl_remote_url=serve(model_server()))) == ServedModel(
        "m", ServerLimits(8192), None, None, None
    )


@pytest.mark.parametrize(
    ("info", "ignores_seed"),
    [
        ({"device": "cpu", "enable_deterministic_inference": True}, True),
        ({"device": "cuda", "enable_deterministic_inference": False}, True),
        ({"device": "cuda", "enable_deterministic_inference": True}, False),
    ],
)
def test_what_sglang_says(info: dict[str, Any], ignores_seed: bool, serve: Callable[[Any], str]):
    app = model_server(root="m", owned_by="sglang")  # its root is the served name

    @app.get("/server_info")
    def server_info() -> dict[str, Any]:
        return {"version": "0.5.23", "model_path": "/models/m", **info}

    served = ask_model_server(settings(sgl_remote_url=serve(app), generator_max_input_len="8192"))
    assert served == ServedModel("m", ServerLimits(8186), "/models/m", "0.5.23", None, ignores_seed)


def ask(url: str) -> Reply:
    return ask_for_a_token(settings(sgl_remote_url=url), SERVED, None, [0], REQUEST)


def test_one_token_is_asked_for_with_the_method_s_parameters(serve: Callable[[Any], str]):
    seen = []
    app = model_server()

    @app.post("/v1/completions")
    async def completions(request: Request) -> dict[str, Any]:
        seen.append(await request.json())
        logprobs = {"tokens": ["a"], "token_logprobs": [-0.5]}
        return {"choices": [{"index": 0, "text": "a", "finish_reason": "length", "logprobs": logprobs}]}

    assert ask(serve(app)) == Reply(has_log_probs=True)
    (body,) = seen
    assert (body["prompt"], body["max_tokens"], body["logprobs"]) == ([1, 2], 1, 1)


@pytest.mark.parametrize(
    ("answer", "is_final", "words"),
    [
        (lambda: JSONResponse({"message": "token 151643 is out of vocabulary"}, 400), True, "out of vocabulary"),
        (lambda: JSONResponse({"detail": "Not Found"}, 404), True, "404"),
        (lambda: JSONResponse({"detail": "busy"}, 429), False, "429"),
        (lambda: JSONResponse({"detail": "boom"}, 500), False, "500"),
    ],
)
def test_a_refusal_is_told_from_a_failure_that_may_pass(answer, is_final, words, serve: Callable[[Any], str]):
    reply = ask(serve(with_completions(answer)))
    assert reply.is_final is is_final
    assert words in (reply.problem or "")


@pytest.mark.usefixtures("quick")
def test_a_server_that_stalls_is_waited_for_for_seconds(serve: Callable[[Any], str]):
    import asyncio

    async def stall() -> Response:
        await asyncio.sleep(1.0)
        return Response()

    reply = ask(serve(with_completions(stall)))
    assert not reply.is_final
    assert "timed out" in (reply.problem or "")


def test_a_judge_tells_its_models_or_not(serve: Callable[[Any], str], closed_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_API_KEY", "key")
    app = FastAPI()

    @app.get("/models")
    def models(request: Request) -> Response:
        if request.headers["authorization"] != "Bearer key":
            return Response(status_code=401)
        return JSONResponse({"data": [{"id": "gpt"}]})

    judge = JudgeSettings(url=serve(app), model="gpt")
    assert ask_judge(judge) == JudgeReply(200, None, ("gpt",))
    monkeypatch.delenv("JUDGE_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert ask_judge(judge).status == 401
    assert "ConnectError" in (ask_judge(JudgeSettings(url=closed_url, model="gpt")).problem or "")


def test_a_key_that_no_request_can_carry_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ключ")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds a space") as told:
        ask_model_server(settings(sgl_remote_url="http://127.0.0.1:1"))
    assert "ключ" not in str(told.value)


def test_this_machine_s_servers_are_asked_without_a_proxy(serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch):
    models, judge = serve(model_server()), serve(FastAPI())
    with running(HttpProxy()) as proxy:
        clear_proxies(monkeypatch)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert ask_model_server(settings(sgl_remote_url=models)).name == "m"
        assert ask(models).is_final  # the server's own 404
        assert ask_judge(JudgeSettings(url=judge, model="gpt")).status == 404
        assert proxy.asked == []
        assert ask_judge(JudgeSettings(url="http://judge.test", model="gpt")).status == 502
        assert proxy.asked == ["GET http://judge.test/models"]
