"""Runs whose servers fail or whose process is killed: after --resume they equal an undisturbed run, item by item."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from evaluation.run_eval import main
from flashrag.system.files import locked

ROOT = Path(__file__).resolve().parents[3]
N_QUESTIONS = 60


def number_in(text: str) -> int:
    """The number of the question that a prompt asks."""
    return int(re.findall(r"King number (\d+)\?", text)[-1])


class ScriptedModel:
    """Thinks, searches for the question's number, and answers with a name that depends on it.

    With faults: of its replies, every 20th breaks off in the middle, and as many stall, are a 500, or no JSON.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.name = "zhou"
        self.faulty = False
        self.delay_s = 0.0
        self.requests = 0

    def text_after(self, prompt: str) -> str:
        number = number_in(prompt)
        if "</result>" not in prompt.partition("Assistant:")[2]:
            return f"<think> t{number} </think> <search> Zhou {number} </search>"
        return f"<answer> \\boxed{{Wu{number % 7}}} </answer><|endoftext|>"

    def reply(self, request: dict[str, Any]) -> bytes:
        text = self.text_after(self.tokenizer.decode(request["prompt"]))
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        choice = {"index": 0, "text": text, "finish_reason": "stop", "token_ids": ids}
        body = {"id": "1", "object": "text_completion", "created": 1, "model": "zhou", "choices": [choice]}
        return json.dumps(body).encode()

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": self.name, "max_model_len": 4096}]}

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            body = self.reply(await request.json())
            self.requests += 1
            number = self.requests  # others are counted while this one waits
            await asyncio.sleep(self.delay_s)
            match number % 20 if self.faulty else None:
                case 0:  # more is promised than comes: the server closes the connection
                    return Response(body[: len(body) // 2], headers={"content-length": str(len(body))})
                case 5:
                    await asyncio.sleep(2.0)  # longer than the client waits
                case 10:
                    return JSONResponse({"error": "boom"}, status_code=500)
                case 15:
                    return Response(body[: len(body) // 2], media_type="application/json")
            return Response(body, media_type="application/json")

        return app


class ScriptedSearch:
    """Finds two passages for each number."""

    def __init__(self) -> None:
        self.searches = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/health")
        def health() -> dict[str, str]:
            return {"status": "healthy"}

        @app.post("/search")
        def search(request: dict[str, Any]) -> Any:
            self.searches += 1
            number = request["query"].rpartition(" ")[2]
            found = [{"id": f"{number}-{i}", "contents": f'"King {number}"\nKing Wu{i} ruled.'} for i in range(2)]
            return [found, [2.0, 1.0]] if request.get("return_score") else found

        return app


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> ScriptedModel:
    return ScriptedModel(tokenizer)


@pytest.fixture(scope="module")
def search() -> ScriptedSearch:
    return ScriptedSearch()


@pytest.fixture(scope="module")
def urls(model: ScriptedModel, search: ScriptedSearch, serve: Callable[[Any], str]) -> dict[str, str]:
    return {"sgl_remote_url": serve(model.app()), "remote_retriever_url": serve(search.app())}


@pytest.fixture(autouse=True)
def calm(model: ScriptedModel, search: ScriptedSearch) -> None:
    model.name, model.faulty, model.delay_s, model.requests = "zhou", False, 0.0, 0
    search.searches = 0


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "kings.jsonl"
    rows = [
        {"id": str(n), "question": f"King number {n}?", "golden_answers": [["Wu1", "Wu2"], ["Wu3"]]}
        for n in range(N_QUESTIONS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def command_in(questions: Path, urls: dict[str, str], model_folder: Path) -> Callable[..., list[str]]:
    """run_eval's arguments for a run named `note` below a folder."""

    def build(folder: Path, note: str, *more: str, **values: Any) -> list[str]:
        keys = {
            **urls,
            "save_dir": folder / "out",
            "save_note": note,
            "generator_model": model_folder,
            "generator_max_input_len": 4096,
            "generator_timeout_s": 1.0,
            "generator_max_retries": 4,
            "concurrency": 16,
            "metrics": "em,f1,retrieval_recall",
            **values,
        }
        config = ["--config_path", str(ROOT / "evaluation" / "eval_config.yaml"), "--method_name", "research"]
        flags = [part for key, value in keys.items() for part in (f"--{key}", str(value))]
        return [*config, "--dataset_name", str(questions), *flags, *more]

    return build


@pytest.fixture
def command(command_in: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    return partial(command_in, tmp_path)


def folder_of(tmp_path: Path, note: str) -> Path:
    return tmp_path / "out" / f"kings_research_{note}"


def summary_of(tmp_path: Path, note: str) -> dict[str, Any]:
    return json.loads((folder_of(tmp_path, note) / "summary.json").read_text())


def items_of(tmp_path: Path, note: str) -> list[dict[str, Any]]:
    """Every item without its times and its number of attempts."""
    items = [json.loads(line) for line in (folder_of(tmp_path, note) / "items.jsonl").read_text().splitlines()]
    for item in items:
        for measured in ("attempt", "written_at", "generate_spans"):
            item.pop(measured)
        for timed in (item["usage"], *item["calls"]):
            timed.pop("latency_s")
    return items


@pytest.fixture(scope="module")
def undisturbed(command_in: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(command_in(folder, "calm")) == 0
    items = items_of(folder, "calm")
    assert [item["answer"] for item in items] == [f"Wu{n % 7}" for n in range(N_QUESTIONS)]
    # Right are the numbers with remainder 1, 2 or 3 by 7: 9 + 9 + 9 of 60.
    assert summary_of(folder, "calm")["metrics"]["em"]["mean"] == pytest.approx(27 / 60)
    return items


@pytest.mark.slow
def test_a_server_that_drops_stalls_and_garbles_changes_nothing(
    command: Callable[..., list[str]], model: ScriptedModel, undisturbed: list[dict[str, Any]], tmp_path: Path
):
    model.faulty, model.requests = True, 0
    # A fifth of the replies are faults: with 4 retries one run in 30 has a question that meets 5 of them.
    assert main(command("faulty", generator_max_retries=9)) == 0
    assert model.requests > 2 * N_QUESTIONS  # some were asked again
    assert items_of(tmp_path, "faulty") == undisturbed


@pytest.mark.slow
def test_a_failed_question_is_recorded_counted_and_asked_again_by_resume(
    command: Callable[..., list[str]],
    model: ScriptedModel,
    undisturbed: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    model.faulty, model.requests = True, 0
    assert main(command("faulty", generator_max_retries=0)) == 0
    first = summary_of(tmp_path, "faulty")
    failed = first["n_failed"]
    assert 5 <= failed <= 40
    assert (first["n"], first["failures"]) == (N_QUESTIONS, {"GenerationError": failed})
    assert first["metrics"]["em"]["n"] == N_QUESTIONS  # failures stay in the denominator
    broken = [item for item in items_of(tmp_path, "faulty") if item["error"]]
    reasons = " | ".join(item["error"]["message"] for item in broken)
    assert all(part in reasons for part in ("code: 500", "timed out", "without sending complete", "Unterminated")), (
        reasons
    )

    model.faulty, model.requests = False, 0
    capsys.readouterr()
    assert main(command("faulty")) == 0  # the same command leaves failures alone …
    assert "the run is complete" in capsys.readouterr().out
    assert model.requests == 0
    assert main(command("faulty", "--resume")) == 0  # … and --resume does not
    assert model.requests == 2 * failed + 1  # the preflight asks for one token
    assert items_of(tmp_path, "faulty") == undisturbed
    lines = (folder_of(tmp_path, "faulty") / "items.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["attempt"] for line in lines) == [1] * (N_QUESTIONS - failed) + [2] * failed


@pytest.mark.slow
def test_a_retrieval_server_dies_and_comes_back(
    command: Callable[..., list[str]],
    served: Callable[..., AbstractContextManager[str]],
    undisturbed: list[dict[str, Any]],
    tmp_path: Path,
):
    search = ScriptedSearch()
    with ExitStack() as mortal:
        url = mortal.enter_context(served(search.app()))

        def die() -> None:
            while search.searches <= 20:  # the preflight's, and those of 20 questions
                time.sleep(0.001)
            mortal.close()

        death = threading.Thread(target=die)
        death.start()
        assert main(command("outage", remote_retriever_url=url, retriever_deadline_s=1)) == 0
        death.join()
    summary = summary_of(tmp_path, "outage")
    assert 0 < summary["n_failed"] <= N_QUESTIONS - 20
    assert summary["failures"] == {"SearchError": summary["n_failed"]}
    with served(ScriptedSearch().app(), port=int(url.rpartition(":")[2])):
        assert main(command("outage", "--resume", remote_retriever_url=url)) == 0
    assert items_of(tmp_path, "outage") == undisturbed


def test_another_configuration_is_refused_by_the_names_of_its_keys(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
):
    assert main(command("run", test_sample_num=2)) == 0
    capsys.readouterr()
    assert main(command("run", test_sample_num=2, max_searches=3, retrieval_topk=2)) == 2
    error = capsys.readouterr().err
    assert "max_searches was 16, is 3, retrieval_topk was 5, is 2" in error
    assert "another save_note" in error
    # Where it is asked and how fast may change; so may the scores, which are worked out again.
    assert main(command("run", test_sample_num=2, concurrency=3, metrics="f1")) == 0


def test_other_questions_under_the_same_name_are_refused(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], questions: Path
):
    assert main(command("run", test_sample_num=2)) == 0
    whole = questions.read_text()
    try:
        questions.write_text(whole.replace("Wu3", "Wu4"))
        assert main(command("run", test_sample_num=2)) == 2
    finally:
        questions.write_text(whole)
    assert "holds a run over other questions" in capsys.readouterr().err


def test_another_served_model_does_not_go_on_with_a_run(
    command: Callable[..., list[str]], model: ScriptedModel, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main(command("run", test_sample_num=2)) == 0
    items = folder_of(tmp_path, "run") / "items.jsonl"
    items.write_text(items.read_text().partition("\n")[0] + "\n")  # one question is left
    model.name = "shang"
    assert main(command("run", test_sample_num=2)) == 2
    assert "was begun with the served model 'zhou', the server now has 'shang'" in capsys.readouterr().err


def test_scores_are_worked_out_again_without_asking(
    command: Callable[..., list[str]], model: ScriptedModel, tmp_path: Path
):
    assert main(command("run", metrics="em")) == 0
    model.requests = 0
    assert main(command("run", metrics="em,f1,acc")) == 0
    assert model.requests == 0
    assert set(summary_of(tmp_path, "run")["metrics"]) == {"em", "f1", "acc"}


def test_a_judge_that_comes_late_judges_what_is_there(
    command: Callable[..., list[str]],
    model: ScriptedModel,
    served: Callable[..., AbstractContextManager[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    judge, asked = FastAPI(), []

    @judge.post("/chat/completions")
    async def chat(request: Request) -> Any:
        asked.append(case := json.loads((await request.json())["messages"][1]["content"]))
        reply = "correct" if case["submitted_answer"] == "Wu1" else "incorrect"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}

    setting = "{judge: {model: judge, max_retries: 0, url: %s}}"
    dead = {"metrics": "em,llm_judge", "metric_setting": setting % "http://127.0.0.1:1", "test_sample_num": 14}
    assert main(command("judged", **dead)) == 0
    assert "14 answers were not judged and count as wrong" in capsys.readouterr().err
    summary = summary_of(tmp_path, "judged")
    assert (summary["n_unjudged"], summary["metrics"]["llm_judge"]["mean"]) == (14, 0.0)
    model.requests = 0
    with served(judge) as url:
        assert main(command("judged", **{**dead, "metric_setting": setting % url})) == 0
    assert (model.requests, len(asked)) == (0, 14)
    # Of the numbers 0 to 13, 1 and 8 have remainder 1 by 7: "Wu1".
    summary = summary_of(tmp_path, "judged")
    assert (summary["n_unjudged"], summary["metrics"]["llm_judge"]["mean"]) == (0, pytest.approx(2 / 14))


def test_two_processes_do_not_work_on_one_run(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(command("run", test_sample_num=1)) == 0
    with locked(folder_of(tmp_path, "run")):
        assert main(command("run", test_sample_num=1)) == 2
    assert "another process is working on this run" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = folder_of(tmp_path, "run")
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    assert main(command("run")) == 2
    assert "holds files, but no run" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stopped_then_killed_the_same_command_goes_on_to_the_same_end(
    command: Callable[..., list[str]], model: ScriptedModel, undisturbed: list[dict[str, Any]], tmp_path: Path
):
    model.delay_s = 0.05
    items = folder_of(tmp_path, "killed") / "items.jsonl"
    arguments = command("killed", concurrency=2)

    stopped = run_until(arguments, items, 5, signal.SIGINT)
    assert stopped.returncode == 130, stopped.stderr
    assert "repeat the command to continue the run" in stopped.stderr
    partial = summary_of(tmp_path, "killed")
    assert 0 < partial["n_missing"] <= N_QUESTIONS - 5
    assert partial["n"] == partial["metrics"]["em"]["n"] == N_QUESTIONS

    terminated = run_until(arguments, items, 12, signal.SIGTERM)
    assert terminated.returncode == 130, terminated.stderr
    killed = run_until(arguments, items, 20, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    with items.open("ab") as file:  # what a kill in the middle of a write leaves
        file.write(b'{"id": "59", "question": "King nu')

    before = model.requests
    assert main(arguments) == 0
    assert model.requests - before <= 2 * (N_QUESTIONS - 20) + 1  # the preflight asks for one token
    assert items_of(tmp_path, "killed") == undisturbed
    sessions = json.loads((items.parent / "environment.json").read_text())["sessions"]
    assert len(sessions) == 4
    assert all(session["ended_at"] >= session["started_at"] for session in sessions)


def run_until(arguments: list[str], items: Path, lines: int, number: int) -> subprocess.CompletedProcess[str]:
    """Run the command as a process until it has written the given number of lines, then send it the signal."""
    program = [sys.executable, "evaluation/run_eval.py", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (items.exists() and items.read_bytes().count(b"\n") >= lines):
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(program, process.returncode, out, err)
