"""ask.py from its command line, on a model whose every token is known."""

import asyncio
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from evaluation.ask import main
from flashrag.episode import Trajectory
from tests.evaluation.conftest import make_model

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Who was the first king of Zhou?"
STEPS = [
    "think       t",
    "query       Zhou",
    "result      1  1.0000  King Wu of Zhou",
    "               King Wu was the first king of the Zhou dynasty. <|endoftext|> </result>",
    "            2  0.5000  Shang",
    "               The Shang dynasty came before.",
    "generation  <answer>\\boxed{Wu}</answer>",
    "answer      Wu",
]


@pytest.fixture
def servers(small_servers: Any, tmp_path: Path) -> dict[str, str]:
    """The flags that name the servers, and the folder."""
    return {**small_servers.flags, "save_dir": str(tmp_path / "asked")}


def flags(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def kept(tmp_path: Path) -> list[Trajectory]:
    lines = (tmp_path / "asked" / "trajectories.jsonl").read_bytes().splitlines()
    return [Trajectory.from_json(line) for line in lines]


def test_an_answer_is_shown_step_by_step_and_kept(
    servers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([f"  {QUESTION} ", *flags(servers)]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert shown == [f"question    {QUESTION}", *STEPS]
    assert last.startswith("            1 search, 12 tokens, ")
    assert last.endswith(f" s, ended by eos; kept in {tmp_path / 'asked' / 'trajectories.jsonl'}")
    (trajectory,) = kept(tmp_path)
    assert (trajectory.question, trajectory.answer, trajectory.gold_answers) == (QUESTION, "Wu", ())
    assert trajectory.metrics == {}  # nobody said what is right


def test_json_is_one_line_for_each_question_and_nothing_else(
    servers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n\n   \nWho was king of Zhou?\n"))
    torn = tmp_path / "asked" / "trajectories.jsonl"
    torn.parent.mkdir()
    torn.write_text('{"torn')
    assert main(["--json", *flags(servers)]) == 0
    shown = [Trajectory.from_json(line.encode()) for line in capsys.readouterr().out.splitlines()]
    assert [trajectory.question for trajectory in shown] == [QUESTION, "Who was king of Zhou?"]
    assert kept(tmp_path) == shown
    assert len({trajectory.question_id for trajectory in shown}) == 2


def test_a_method_that_works_on_text_is_shown_too(servers: dict[str, str], capsys: pytest.CaptureFixture[str]):
    assert main([QUESTION, *flags({**servers, "method_name": "naive", "retrieval_topk": 1})]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:3] == [f"query       {QUESTION}", "result      1  1.0000  King Wu of Zhou"]


def test_the_model_and_its_context_are_the_server_s_unless_they_are_given(
    servers: dict[str, str], serve: Callable[[Any], str], model_folder: Path, capsys: pytest.CaptureFixture[str]
):
    app = FastAPI()
    card = {"id": "zhou", "root": str(model_folder), "max_model_len": 1000}
    app.get("/v1/models")(lambda: {"data": [card]})
    choice = {"text": "a", "token_ids": [5], "finish_reason": "length"}
    app.post("/v1/completions")(lambda: {"choices": [choice]})
    served = {**servers, "sgl_remote_url": serve(app), "generator_model": None}
    assert main([QUESTION, *flags(served), "--check"]) == 0
    shown = capsys.readouterr().out
    assert f"tokenizer  {model_folder} (" in shown
    assert "prompt and response 1000 tokens" in shown
    assert main([QUESTION, *flags({**served, "generator_max_input_len": 1001}), "--check"]) == 2
    assert "generator_max_input_len=1001, but the server" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"sgl_remote_url": "http://127.0.0.1:1"}, "no model server answers at sgl_remote_url=http://127.0.0.1:1"),
        ({"remote_retriever_url": None, "search_url": "http://127.0.0.1:1"}, "at remote_retriever_url=http://127.0.0.1:1"),
        ({"generator_model": "/nowhere"}, "generator_model=/nowhere does not exist"),
        ({"apply_chat": "true"}, "apply_chat=true, but the tokenizer has no chat template"),
        ({"method_name": "reserch"}, "method_name: 'reserch' was given"),
        ({"method_name": "random"}, "method_name=random needs a set of questions"),
        ({"method_name": "oracle-passages"}, "method_name=oracle-passages needs a set of questions"),
        ({"search_control": "random"}, "search_control=random draws from the questions of a whole run"),
        ({"reward": "my_reward.py:reward"}, "unknown flag '--reward'"),
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 says where a page listens, and none was asked for; add --page"),
        ({"metrics": "em"}, "unknown flag '--metrics'"),
        ({"apply_caht": "true"}, "unknown flag '--apply_caht'; did you mean '--apply_chat'?"),
        ({"config_path": "/nowhere.yaml"}, "config file not found: /nowhere.yaml"),
        ({"save_dir": "/proc/none"}, "save_dir=/proc/none"),
        ({"demo": "/nowhere"}, "--demo and --remote_retriever_url were both given"),
        ({"auto_serve": "/nowhere"}, "--auto_serve and --sgl_remote_url were both given"),
        ({"page": "0"}, "--page and a question were both given"),
        ({"page": "70000", "": None}, "70000 was given; expected an integer from 0 to 65535"),
        ({"generator_max_input_len": "100"}, "cannot be asked: the prompt has"),
    ],
)  # fmt: skip
def test_unusable_input_is_one_line_and_exit_code_2(
    broken: dict[str, Any], message: str, servers: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    for check in ([], ["--check"]):
        assert main([QUESTION, *flags({**servers, **broken}), *check]) == 2
        captured = capsys.readouterr()
        assert message in captured.err + captured.out
        if not check:
            assert captured.err.startswith("error: ")
            assert captured.err.count("\n") == 1
    assert not Path(servers["save_dir"]).exists()


def test_a_question_can_be_asked_under_a_control(servers: dict[str, str], tmp_path: Path):
    assert main([QUESTION, *flags({**servers, "search_control": "empty"})]) == 0
    (trajectory,) = kept(tmp_path)
    assert (trajectory.answer, [call.passages for call in trajectory.calls]) == ("Wu", [()])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["  "], "no question was given; expected e.g."),
        ([], "no question was given; expected e.g."),
        (["Who \udcff?"], "holds half a character or odd bytes"),
        (["--demo", "/nowhere"], "--demo /nowhere holds no finished demo (/nowhere/evaluation/demo_dev_research_tr"),
    ],
)  # fmt: skip
def test_a_question_or_a_demo_that_is_not_there(
    given: list[str],
    message: str,
    servers: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main([*given, *([] if "--demo" in given else flags(servers))]) == 2
    assert message in capsys.readouterr().err


def test_a_server_that_fails_later_is_told_in_one_line(
    servers: dict[str, str], serve: Callable[[Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    app = FastAPI()
    app.get("/health")(lambda: {"status": "healthy"})
    app.post("/search")(lambda: JSONResponse({"detail": "busy"}, 429))
    busy = {**servers, "remote_retriever_url": serve(app), "retriever_deadline_s": 0.5}
    assert main([QUESTION, *flags(busy)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1:3] == STEPS[:2]
    assert "answer" not in captured.out
    (problem,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert problem.startswith("error: SearchError: search failed: ")
    (trajectory,) = kept(tmp_path)
    assert trajectory.failed


class Terminal:
    """The command at a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self._own, its = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "evaluation/ask.py", *words]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
        )
        os.close(its)
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def wait_for(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + 240  # a busy machine takes a minute to start a program
        while self.text.count(text) < times:
            assert time.monotonic() < deadline, self.text
            self.text += os.read(self._own, 4096).decode()

    def interrupt(self) -> None:
        os.kill(self.process.pid, signal.SIGINT)

    def ended(self) -> int:
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            os.close(self._own)


@pytest.mark.timeout(300)
def test_a_person_asks_one_question_after_the_other(servers: dict[str, str], tmp_path: Path):
    terminal = Terminal(*flags(servers))
    for number in (1, 2):
        terminal.wait_for("question    ", number)
        terminal.type(f"{QUESTION} {number}\n")
        terminal.wait_for("kept in", number)
        assert terminal.text.count("\x1b[36mt") == number
    terminal.wait_for("question    ", 3)
    terminal.type("\n")
    assert terminal.ended() == 0
    assert [trajectory.question for trajectory in kept(tmp_path)] == [f"{QUESTION} 1", f"{QUESTION} 2"]


@pytest.mark.timeout(300)
def test_ctrl_c_ends_it_while_the_model_writes(servers: dict[str, str], serve: Callable[[Any], str], tmp_path: Path):
    app = FastAPI()
    app.get("/v1/models")(lambda: {"data": [{"id": "zhou", "max_model_len": 4096}]})

    async def parts() -> AsyncIterator[str]:
        yield f"data: {json.dumps({'choices': [{'text': '<think> I am slow. ', 'token_ids': [5]}]})}\n\n"
        await asyncio.sleep(20)

    @app.post("/v1/completions")
    def completions(request: dict[str, Any]) -> Any:
        if request.get("stream"):
            return StreamingResponse(parts(), media_type="text/event-stream")
        return {"choices": [{"text": "a", "token_ids": [5], "finish_reason": "length"}]}

    terminal = Terminal(QUESTION, *flags({**servers, "sgl_remote_url": serve(app)}))
    terminal.wait_for("I am slow.")
    terminal.interrupt()
    terminal.wait_for("interrupted")
    assert terminal.ended() == 130
    assert "Traceback" not in terminal.text
    assert not (tmp_path / "asked" / "trajectories.jsonl").exists()


@pytest.mark.timeout(300)
def test_the_page_is_served_until_ctrl_c(servers: dict[str, str]):
    terminal = Terminal("--page", "0", *flags(servers))
    terminal.wait_for("(Ctrl-C ends it)")
    url = re.search(r"ready: (\S+)", terminal.text)[1]
    assert "research · zhou · searches http://127.0.0.1:" in httpx.get(url).text
    reply = httpx.post(f"{url}/ask", json={"question": QUESTION})
    *_, end = map(json.loads, reply.text.splitlines())
    assert (end["kind"], end["answer"], end["error"]) == ("end", "Wu", "")
    terminal.interrupt()
    assert terminal.ended() == 130
    assert "Traceback" not in terminal.text


@pytest.fixture
def demo(tmp_path: Path, successors: dict[int, int], tokenizer: Any, corpus: dict[str, str]) -> Path:
    """What a finished demo leaves of its model, of its last evaluation and of its retrieval server."""
    model, folder = tmp_path / "model", tmp_path / "my demo"
    make_model(successors).save_pretrained(model)
    tokenizer.save_pretrained(model)
    config = yaml.safe_load((ROOT / "evaluation" / "eval_config.yaml").read_text())
    config |= {"generator_model": str(model), "dataset_name": "demo", "split": "dev", "method_name": "research"}
    config |= {"generator_max_input_len": 1024, "max_result_tokens": 160, "retrieval_topk": 1}
    for name, content in (
        ("evaluation/demo_dev_research_trained/config.yaml", config),
        ("logs/serving_config.yaml", corpus),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(yaml.safe_dump(content))
    return folder


def test_check_of_a_demo_looks_at_its_model_and_its_index(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["--demo", str(demo), "--save_dir", str(tmp_path / "asked"), "--check"]
    assert main([QUESTION, *command]) == 0
    shown = capsys.readouterr().out
    assert f"--model {tmp_path / 'model'} " in shown
    assert "passages: 2 in " in shown
    assert "prompt and response 1024 tokens" in shown
    assert f"python evaluation/ask.py '{QUESTION}' --demo '{demo}' --save_dir" in shown
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    assert main([QUESTION, *command]) == 2
    assert "model.safetensors" in capsys.readouterr().out
    assert not (tmp_path / "asked").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_demo_is_served_by_real_engines_for_the_length_of_a_question(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([QUESTION, "--demo", str(demo), "--save_dir", str(tmp_path / "asked")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [shown[1], shown[2], *shown[-3:-1]] == [STEPS[0], STEPS[1], *STEPS[-2:]]
    (trajectory,) = kept(tmp_path)
    assert [len(segment.token_ids) for segment in trajectory.segments if segment.source == "model"] == [6, 6]
