"""The route of the page, without a browser."""

import json
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from evaluation.asking.page import create_app
from flashrag.document import Passage
from flashrag.episode import Piece, StepKind, Trajectory, Usage
from flashrag.errors import UserError


async def answer(question: str, show: Callable[[Piece], object]) -> Trajectory:
    if question == "full":
        raise UserError("the disk\nis full")
    show(Piece(StepKind.RESULT, "", passages=(Passage("7", "half \ud800", 0.5),)))
    return Trajectory("1", question, (), answer="Wu", usage=Usage(searches=2, completion_tokens=7, latency_s=1.25))


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(answer, "<&"))


def test_the_lines_of_an_answer(client: TestClient, capsys: pytest.CaptureFixture[str]):
    reply = client.post("/ask", json={"question": " Who? "})
    assert [json.loads(line) for line in reply.text.splitlines()] == [
        {
            "kind": "result", "text": "", "starts": True, "retracts": False,
            "passages": [{"id": "7", "contents": "half ?", "score": 0.5, "has_answer": False}],
        },
        {"kind": "end", "answer": "Wu", "error": "", "figures": "2 searches, 7 tokens, 1.2 s, ended by eos"},
    ]  # fmt: skip
    (line,) = client.post("/ask", json={"question": "full"}).text.splitlines()
    assert json.loads(line) == {"kind": "end", "answer": "", "error": "the disk is full", "figures": ""}
    assert "the disk" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ('{"question": "  "}', "no question was given"),
        ('{"question": "Who \\ud800?"}', "half a character"),
        ('{"question": 5}', "expected"),
        ("{", "expected"),
        ("[]", "expected"),
    ],
)
def test_what_is_no_question_is_refused_in_one_line(client: TestClient, body: str, detail: str):
    reply = client.post("/ask", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 422)
    assert detail in reply.json()["detail"]


def test_another_site_s_form_cannot_ask(client: TestClient):
    reply = client.post("/ask", content='{"question": "Who?"}', headers={"Content-Type": "text/plain"})
    assert reply.status_code == 422


def test_the_page_runs_nothing_but_its_own_files(client: TestClient):
    reply = client.get("/")
    assert "script-src 'self'" in reply.headers["content-security-policy"]
    assert "&lt;&amp;" in reply.text
    for name in ("static/ask.js", "static/ask.css", "report/trajectory.js", "report/trajectory.css"):
        assert f'"{name}"' in reply.text
        assert client.get(f"/{name}").status_code == 200
