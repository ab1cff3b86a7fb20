"""Downloads from a server on this machine that speaks the hub's routes."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from fastapi import FastAPI, Request, Response
from huggingface_hub import close_session

from scripts.download_data import REPOSITORY, main
from tests.proxies import HttpProxy, clear_proxies, running
from tests.scripts.hub import send_file

COMMIT = "1" * 40


def file_of(rows: int) -> bytes:
    line = '{{"id": "test_{}", "question": "Who?", "golden_answers": ["Wu"], "metadata": {{}}}}\n'
    return "".join(line.format(number) for number in range(rows)).encode()


class Hub:
    """One file, stated and sent as a test says."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.content = file_of(125)
        self.stated_sha256: str | None = None
        self.break_after: int | None = None
        self.ranges: list[str | None] = []

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.api_route(f"/datasets/{REPOSITORY}/resolve/{{revision}}/bamboogle/test.jsonl", methods=["GET", "HEAD"])
        def send(request: Request, revision: str) -> Response:
            if revision not in ("main", COMMIT):
                return Response(status_code=404, headers={"x-error-code": "RevisionNotFound"})
            sha256 = self.stated_sha256 or hashlib.sha256(self.content).hexdigest()
            if request.method == "GET":
                self.ranges.append(request.headers.get("range"))
            return send_file(request, self.content, sha256, COMMIT, self.cut_off)

        return app

    def cut_off(self, body: bytes) -> bytes:
        length, self.break_after = self.break_after, None
        return body[:length]


@pytest.fixture(scope="module")
def server(serve: Callable[[Any], str]) -> tuple[Hub, str]:
    hub = Hub()
    return hub, serve(hub.app())


@pytest.fixture(autouse=True)
def hub(server: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server[0].reset()
    return server[0]


@pytest.fixture
def arguments(server: tuple[Hub, str], tmp_path: Path) -> list[str]:
    return ["bamboogle", "--data_dir", str(tmp_path / "data"), "--endpoint", server[1]]


def lock_of(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "data" / "data.lock.json").read_text())


def test_a_file_is_fetched_checked_and_locked(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 0
    target = tmp_path / "data" / "bamboogle" / "test.jsonl"
    assert target.read_bytes() == hub.content
    sha256 = hashlib.sha256(hub.content).hexdigest()
    assert lock_of(tmp_path) == {
        "bamboogle/test.jsonl": {
            "size_bytes": len(hub.content), "sha256": sha256, "rows": 125, "revision": COMMIT,
        }
    }  # fmt: skip
    assert sha256 in capsys.readouterr().out
    sent = len(hub.ranges)
    assert main(arguments) == 0  # nothing is fetched twice
    assert "there already, sha256 as in" in capsys.readouterr().out
    assert len(hub.ranges) == sent


def test_a_file_that_changed_on_disk_is_told(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 0
    target = tmp_path / "data" / "bamboogle" / "test.jsonl"
    target.write_bytes(hub.content.replace(b"Who?", b"Wer?"))
    assert main(arguments) == 2
    assert "remove it to fetch it again" in capsys.readouterr().err
    target.unlink()
    assert main(arguments) == 0


def test_a_file_that_changed_at_the_source_is_not_taken(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 0
    target = tmp_path / "data" / "bamboogle" / "test.jsonl"
    target.unlink()
    hub.content = hub.content.replace(b"Wu", b"We")
    assert main(arguments) == 2
    assert "is it another revision?" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (file_of(124), "has 124 questions; FlashRAG's README gives 125"),
        (b"<html>a login page</html>\n", "is not valid JSON"),
    ],
)
def test_what_is_no_such_file_is_not_taken(
    content: bytes, message: str, hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub.content = content
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data" / "bamboogle").exists()
    hub.reset()
    assert main(arguments) == 0  # nothing bad stays behind in place of a new download


def test_a_hash_other_than_the_stated_one_is_told(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub.stated_sha256 = "0" * 64
    assert main(arguments) == 2
    assert "the hub states" in capsys.readouterr().err
    assert not (tmp_path / "data" / "bamboogle").exists()


def test_a_broken_download_is_resumed(hub: Hub, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.break_after = 4000
    assert main(arguments) == 0
    assert hub.ranges[0] is None
    assert hub.ranges[1].startswith("bytes=")
    assert hub.ranges[1] != "bytes=0-"
    assert (tmp_path / "data" / "bamboogle" / "test.jsonl").read_bytes() == hub.content


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["hotpot"], "'hotpot' is no data set here; choose from hotpotqa"),
        (["bamboogle", "--split", "dev"], "bamboogle has no split 'dev'; it has: test"),
        ([], "DATASET"),
    ],
)
def test_slips_are_told(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_revision_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--revision", "nowhere"]) == 2
    assert "at 'nowhere'" in capsys.readouterr().err


def test_without_a_network_the_ways_out_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    argv = ["bamboogle", "--data_dir", str(tmp_path), "--endpoint"]
    assert main([*argv, "http://127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert "bamboogle/test.jsonl cannot be fetched" in error
    assert "scripts/convert_data.py" in error
    assert error.count("\n") == 1
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main([*argv, "http://127.0.0.1:1"]) == 2
    assert "cannot be fetched" in capsys.readouterr().err


def test_a_mirror_on_this_machine_needs_no_proxy(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    close_session()  # the next client reads the variables again
    with running(HttpProxy()) as proxy:
        clear_proxies(monkeypatch)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert main(arguments) == 0
        assert proxy.asked == []
        assert main([*arguments[:-1], "http://hub.test", "--data_dir", str(tmp_path)]) == 2
    assert f"through the proxy {proxy.url} (from http_proxy)" in capsys.readouterr().err
    monkeypatch.setenv("http_proxy", "htp://proxy")
    assert main([*arguments[:-1], "http://hub.test", "--data_dir", str(tmp_path)]) == 2
    assert "http_proxy='htp://proxy' is not a proxy's address" in capsys.readouterr().err
    close_session()


def test_check_says_what_would_be_fetched_and_fetches_nothing(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments, "--check"]) == 0
    printed = capsys.readouterr().out
    target = tmp_path / "data" / "bamboogle" / "test.jsonl"
    assert f"{target}: {len(hub.content)} bytes, 125 questions expected" in printed
    assert "0 errors: this would start" in printed
    assert (hub.ranges, target.parent.exists()) == ([], False)
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["nq", *arguments, "--split", "test", "--check"]) == 2
    printed = capsys.readouterr().out
    assert f"{target}: 125 questions, there already, sha256 as in" in printed
    assert "error: nq/test.jsonl cannot be fetched" in printed
    assert main(["nq", "popqa", *arguments[:-1], "http://127.0.0.1:1", "--split", "test", "--check"]) == 2
    assert "error: nq/test.jsonl, popqa/test.jsonl cannot be fetched" in capsys.readouterr().out
    assert main([*arguments, "--split", "dev", "--check"]) == 2
    assert "files  unknown" in capsys.readouterr().out


def test_a_file_of_ones_own_is_left_alone(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "data" / "bamboogle" / "test.jsonl"
    target.parent.mkdir(parents=True)
    target.write_bytes(file_of(3))
    assert main(arguments) == 0
    assert "3 questions, there already; not fetched by this command" in capsys.readouterr().out
    assert target.read_bytes() == file_of(3)
