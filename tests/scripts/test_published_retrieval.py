"""Downloads of corpus, index and encoder from a server on this machine that speaks the hub's routes, in small."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from fastapi import FastAPI, Request, Response

from scripts import published_retrieval
from scripts.download_data import main
from scripts.published_retrieval import PUBLISHED, Pinned, Published
from tests.scripts.hub import send_file

CORPUS = b'{"id": "0", "contents": "\\"Rome\\"\\nA city."}\n' * 50
PARTS = {"part_aa": bytes(range(256)) * 40, "part_ab": b"the rest of the index"}
WEIGHTS, CONFIG = b"weights" * 1000, b'{"model_type": "bert"}'


def archive() -> bytes:
    """The corpus as it is published: with folders and another file in a tar archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in (("data/notes.txt", b"notes"), ("data/wiki_dump.jsonl", CORPUS)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


FILES = {
    "wiki18": {"wiki-18.jsonl.gz": archive()},
    "e5-index": PARTS,
    "e5-base-v2": {"model.safetensors": WEIGHTS, "config.json": CONFIG, "1_Pooling/config.json": b"{}"},
}
SIZES = {"wiki18": len(CORPUS), "e5-index": sum(map(len, PARTS.values())), "e5-base-v2": None}


def small(name: str) -> Published:
    """The published one, with the files of this module."""

    def pinned(file: str, content: bytes) -> Pinned:
        is_large = not file.endswith("config.json")
        return Pinned(len(content), hashlib.sha256(content).hexdigest()) if is_large else Pinned()

    files = {file: pinned(file, content) for file, content in FILES[name].items()}
    return replace(PUBLISHED[name], files=files, size_bytes=SIZES[name])


class Hub:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.changed: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.break_after: dict[str, int] = {}
        self.sent: list[tuple[str, str | None]] = []

    def app(self) -> FastAPI:
        app = FastAPI()
        for name, published in PUBLISHED.items():
            prefix = "/datasets" if published.repo_type == "dataset" else ""
            route = f"{prefix}/{published.repository}/resolve/{published.revision}/{{file:path}}"
            app.add_api_route(route, self.sender(name, published.revision), methods=["GET", "HEAD"])
        return app

    def sender(self, name: str, revision: str) -> Callable[[Request, str], Response]:
        def send(request: Request, file: str) -> Response:
            content = self.changed.get(file, FILES[name][file])
            etag = hashlib.sha256(content).hexdigest()
            if file.endswith("config.json"):
                etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if request.method == "GET":
                self.sent.append((file, request.headers.get("range")))
            return send_file(request, content, etag, revision, partial(self.damage, file))

        return send

    def damage(self, file: str, body: bytes) -> bytes:
        if file in self.damaged:
            body = body[:-1] + b"?"
        return body[: self.break_after.pop(file, None)]


@pytest.fixture(scope="module")
def server(serve: Callable[[Any], str]) -> tuple[Hub, str]:
    hub = Hub()
    return hub, serve(hub.app())


@pytest.fixture(autouse=True)
def hub(server: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(published_retrieval, "PUBLISHED", {name: small(name) for name in PUBLISHED})
    server[0].reset()
    return server[0]


@pytest.fixture
def arguments(server: tuple[Hub, str], tmp_path: Path) -> list[str]:
    return ["retrieval", "--output_dir", str(tmp_path), "--endpoint", server[1]]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {
    "data/wiki18_100w.jsonl": CORPUS,
    "indexes/e5_Flat.index": b"".join(PARTS.values()),
    "models/e5-base-v2/model.safetensors": WEIGHTS,
    "models/e5-base-v2/config.json": CONFIG,
    "models/e5-base-v2/1_Pooling/config.json": b"{}",
}


def test_all_three_come_to_where_the_server_looks_for_them(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 0
    assert tree(tmp_path) == WHOLE
    told = capsys.readouterr().out
    assert told.startswith("fetching: 0 MiB of ")
    assert "e5_Flat.index: e5-index, as PeterJinGo/wiki-18-e5-index at a4d31160a035f30764604f4827cd8f1d0315eb86" in told
    sent = len(hub.sent)
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("there already") == 3
    assert len(hub.sent) == sent


def test_the_list_is_whole_and_the_sizes_fit_together():
    """21,015,324 vectors of 768 float32 and faiss's header; every large file has a size and a sha256."""
    assert PUBLISHED["e5-index"].size_bytes == 21_015_324 * 768 * 4 + 45
    assert sum(each.size_bytes or 0 for each in PUBLISHED["e5-index"].files.values()) == 21_015_324 * 768 * 4 + 45
    pinned = [each for one in PUBLISHED.values() for each in one.files.values() if each.size_bytes]
    assert [len(each.sha256 or "") for each in pinned] == [64] * 4
    assert [len(one.revision) for one in PUBLISHED.values()] == [40] * 3


def test_check_says_sizes_and_fetches_nothing(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments, "--check"]) == 0
    told = capsys.readouterr().out
    assert (
        f"{tmp_path}/data/wiki18_100w.jsonl: wiki18, 0 MiB, 0 MiB when unpacked, of PeterJinGo/wiki-18-corpus" in told
    )
    assert "0 errors: this would start" in told
    assert (hub.sent, tree(tmp_path)) == ([], {})


def test_a_broken_download_is_resumed(hub: Hub, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.break_after = {"part_aa": 4000}
    assert main([*arguments, "e5-index"]) == 0
    assert [wanted for file, wanted in hub.sent if file == "part_aa"][1] not in (None, "bytes=0-")
    assert tree(tmp_path) == {name: content for name, content in WHOLE.items() if name.startswith("indexes")}


def test_an_interrupted_join_goes_on(hub: Hub, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(parts: list[Path], _: Path) -> None:
        with parts[0].open("ab") as file:
            file.write(b"the rest")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(published_retrieval, "join", killed)
        assert main([*arguments, "e5-index"]) == 130
    sent = len(hub.sent)
    assert main([*arguments, "e5-index"]) == 0
    assert len(hub.sent) == sent  # nothing is fetched again
    assert tree(tmp_path) == {name: content for name, content in WHOLE.items() if name.startswith("indexes")}


def test_another_file_than_the_published_one_is_refused_before_it_is_fetched(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub.changed = {"part_ab": b"another end of the index"}
    assert main([*arguments, "e5-index"]) == 2
    told = capsys.readouterr().err
    assert "part_ab of PeterJinGo/wiki-18-e5-index at a4d31160" in told
    assert "is another one: the hub states 24, expected 21; is --endpoint the right mirror?" in told
    hub.changed = {"part_ab": b"The rest of the index"}
    assert main([*arguments, "e5-index"]) == 2
    assert f"expected {hashlib.sha256(PARTS['part_ab']).hexdigest()}" in capsys.readouterr().err
    assert (hub.sent, tree(tmp_path)) == ([], {})


@pytest.mark.parametrize(("name", "file"), [("e5-index", "part_ab"), ("e5-base-v2", "config.json")])
def test_a_file_that_comes_damaged_is_not_taken(
    name: str, file: str, hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub.damaged = {file}
    assert main([*arguments, name]) == 2
    assert "the hub states" in capsys.readouterr().err
    assert not (tmp_path / PUBLISHED[name].path).exists()
    hub.reset()
    assert main([*arguments, name]) == 0
    assert tree(tmp_path).items() <= WHOLE.items()


def test_what_is_not_the_published_file_is_left_alone(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, there in (("wiki18", tmp_path / "data" / "wiki18_100w.jsonl"), ("e5-base-v2", tmp_path / "models")):
        target = tmp_path / PUBLISHED[name].path
        target.parent.mkdir()
        if name == "wiki18":
            there.write_bytes(b"mine")
        else:
            target.mkdir()
        assert main([*arguments, name]) == 2
        told = capsys.readouterr().err
        assert f"{target}" in told
        assert "remove it, give another --output_dir, or name only what is missing" in told
    assert (tmp_path / "data" / "wiki18_100w.jsonl").read_bytes() == b"mine"
    assert hub.sent == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    hub: Hub, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # The index: its parts, and the second one once more while it is appended.
    needed = 2 * len(PARTS["part_ab"]) + len(PARTS["part_aa"])
    monkeypatch.setattr("flashrag.preflight.machine.free_bytes", lambda _: needed)
    assert main([*arguments, "e5-index", "--check"]) == 0
    monkeypatch.setattr("flashrag.preflight.machine.free_bytes", lambda _: needed - 1)
    assert main([*arguments, "e5-index"]) == 2
    told = capsys.readouterr().err
    assert "are free, but the files need" in told
    assert hub.sent == []


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_one_line_tells_the_ways_out(
    offline: bool, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    assert main([*arguments[:-1], "http://127.0.0.1:1"]) == 2
    told = capsys.readouterr().err
    assert "cannot be fetched" in told
    assert "name a mirror (--endpoint, HF_ENDPOINT)" in told
    assert told.count("\n") == 1


def test_an_unknown_name_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "wiki-18"]) == 2
    assert "'wiki-18' is not one of wiki18, e5-index, e5-base-v2; did you mean" in capsys.readouterr().err
