"""Published prompts from a server on this machine in the place of GitHub's."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response

from flashrag.prompts import PROMPTS, choose_prompt
from scripts import published_prompts
from scripts.download_data import main
from tests.proxies import clear_proxies

SOURCE = b'''
raise SystemExit("never run")


class Prompts:
    instruction = (
        "Be brief. "
        "Box: \\\\boxed{{so}}\\n{reference}"
    )
    example = 'E: {"a": 1} $1'


def task(question, model=None):
    if model:
        words = "first"
    else:
        words = "Q: {literal} " f"{question}\\n"
    return Prompts(user=words, system="s")


def reading(page, ask):
    return f"""Read {page}
for {ask}"""
'''
ENTRY = {
    "methods": "naive",
    "place": "with_passages",
    "repository": "Them/Theirs",
    "revision": "1" * 40,
    "file": "src/prompts.py",
    "sha256": hashlib.sha256(SOURCE).hexdigest(),
    "names": {"reference": "passages"},
    "strings": {
        "system": {"at": "Prompts.instruction", "format": True},
        "example": {"at": "Prompts.example"},
        "user": {"at": "task.words[1]"},
    },
    "prompt": {"system": "$system\n$example", "user": "$user", "cue": " A:"},
}
SECOND = {
    **ENTRY,
    "place": "reasoning",
    "names": {"page": "passages", "ask": "question"},
    "strings": {"user": {"at": "task.words[1]"}, "reading": {"at": "reading.return"}},
    "prompt": {"user": "$user", "with_passages": {"user": "$reading"}},
}


class Server:
    status = 200
    content = SOURCE
    asked: list[str]

    def app(self) -> FastAPI:
        app, self.asked = FastAPI(), []

        @app.get("/{path:path}")
        def send(path: str) -> Response:
            self.asked.append(path)
            return Response(self.content, status_code=self.status)

        return app


@pytest.fixture(scope="module")
def running(serve: Callable[[Any], str]) -> tuple[Server, str]:
    server = Server()
    return server, serve(server.app())


@pytest.fixture
def server(running: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(published_prompts, "PUBLISHED", {"theirs": ENTRY, "second": SECOND})
    server, _ = running
    server.status, server.content = 200, SOURCE
    server.asked.clear()
    return server


@pytest.fixture
def arguments(running: tuple[Server, str], tmp_path: Path) -> list[str]:
    return ["prompts", "--data_dir", str(tmp_path), "--endpoint", running[1]]


def test_the_words_are_read_out_of_the_source(
    server: Server, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 0
    assert sorted(server.asked) == [f"Them/Theirs/{'1' * 40}/src/prompts.py"] * 2
    path = tmp_path / "prompts" / "theirs.yaml"
    prompt = choose_prompt("with_passages", path).template
    assert prompt.fill(question="Who {x}?").messages == [
        {"role": "system", "content": 'Be brief. Box: \\boxed{so}\n\nE: {"a": 1} $1'},
        {"role": "user", "content": "Q: {literal} Who {x}?\n"},
    ]
    second = choose_prompt("reasoning", tmp_path / "prompts" / "second.yaml").template.with_passages
    assert second is not None
    assert second.user == "Read {passages}\nfor {question}"
    assert path.read_text().startswith(f"# Them/Theirs at {'1' * 12}, src/prompts.py, sha256 {ENTRY['sha256']}\n")
    assert ENTRY["sha256"] in capsys.readouterr().out
    server.asked.clear()
    assert main([*arguments, "theirs"]) == 0  # nothing is fetched twice
    assert (server.asked, "there already, left as it is" in capsys.readouterr().out) == ([], True)


def test_check_writes_nothing(server: Server, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--check"]) == 0
    assert f"theirs.yaml: Them/Theirs at {'1' * 12}, src/prompts.py" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    server.status = 503
    assert main([*arguments, "theirs", "--check"]) == 2
    assert "answered 503" in capsys.readouterr().out


@pytest.mark.usefixtures("server")
def test_a_file_that_is_there_and_is_no_prompt_is_told_before_anything_is_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "prompts" / "theirs.yaml"
    path.parent.mkdir()
    path.write_text("user: no question\n")
    assert main([*arguments, "--check"]) == 2
    assert f"prompt_file={path}: system and user lacks" in capsys.readouterr().out
    assert main(arguments) == 2
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (404, b"", "answered 404; name a mirror (--endpoint), or write the prompt yourself (docs/prompts.md)"),
        (200, SOURCE + b"\n", f"expected {ENTRY['sha256']}"),
    ],
)
def test_what_is_not_the_listed_source_is_not_taken(
    status: int, content: bytes, message: str, server: Server, arguments: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    server.status, server.content = status, content
    assert main([*arguments, "theirs"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: theirs")
    assert message in line
    assert not (tmp_path / "prompts").exists()


@pytest.mark.usefixtures("server")
def test_offline_it_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    clear_proxies(monkeypatch)
    assert main(["prompts", "theirs", "--data_dir", str(tmp_path), "--endpoint", "http://127.0.0.1:9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: theirs cannot be fetched: .*refused \(http://127\.0\.0\.1:9/Them/Theirs/1+/", line)
    assert "name a mirror (--endpoint)" in line
    assert main(["prompts", "their", "--data_dir", str(tmp_path)]) == 2
    assert "'their' is not one of theirs, second; did you mean 'theirs'?" in capsys.readouterr().err


def test_every_listed_prompt_has_a_place_a_revision_and_a_hash():
    for name, entry in published_prompts.PUBLISHED.items():
        assert entry["place"] in PROMPTS, name
        assert re.fullmatch(r"[0-9a-f]{40}", entry["revision"]), name
        assert re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]), name
        assert not Path(entry["file"]).is_absolute()
