"""Every command of the docs is run as printed, in what looks like a fresh clone, and does what table.py says."""

import ast
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from flashrag.system.local_server import free_port
from tests.docs.clone import Clone, Finished
from tests.docs.pages import ROOT, Command, all_printed, commands, printed
from tests.docs.table import TABLE, Entry, entry_of, run_here, writer_of

ENGINES_TIMEOUT_S = 600


class Session:
    """Runs each printed command at most once, those that it needs first; keeps the servers until the end."""

    def __init__(self, clone: Clone, servers: ExitStack, judge_url: Callable[[], str]) -> None:
        self.clone = clone
        self.servers = servers
        self.judge_url = judge_url
        self.kept: dict[str, str] = {}
        self.run = cache(self._run)

    def _run(self, text: str) -> Finished:
        (command,) = [command for command in run_here() if command.text == text]
        entry = known(command)
        self.make(entry.needs)
        for name in entry.writes:  # another command wrote it, too
            remove(self.clone.folder / name)
        return self.clone.run(entry.script(command).replace("$JUDGE_URL", self.kept.get("judge", "")))

    def make(self, needs: tuple[str, ...]) -> None:
        """The files and servers that a command needs."""
        for need in needs:
            if need == "judge":
                self.kept.setdefault(need, self.judge_url())
            elif need == "port 8000":
                _skip_unless_free(8000)
            elif need in self.clone.ports:
                if need not in self.kept:
                    self.servers.enter_context(self.server(writer_of(need), self.clone.ports[need]))
                    self.kept[need] = self.clone.ports[need]
            elif not (self.clone.folder / need).exists():
                self.run(writer_of(need).text).check()

    def server(self, command: Command, port: str) -> AbstractContextManager[None]:
        """The server of a command, on this port in place of the printed one."""
        entry = known(command)
        self.make(entry.needs)
        ports = {entry.serves: port}
        return self.clone.served(entry.script(command), entry.prints, ports, timeout_s=ENGINES_TIMEOUT_S)


def _skip_unless_free(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            pytest.skip(f"port {port}, which the printed command takes, is in use")


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def known(command: Command) -> Entry:
    entry = entry_of(command)
    assert entry, f"{command}: no entry of tests/docs/table.py says how to run it"
    return entry


@pytest.fixture(scope="module")
def session(
    tmp_path_factory: pytest.TempPathFactory, served: Callable[..., AbstractContextManager[str]]
) -> Iterator[Session]:
    with ExitStack() as servers:
        clone = Clone(tmp_path_factory.mktemp("clone"))
        yield Session(clone, servers, lambda: servers.enter_context(served(approving_judge())))


def approving_judge() -> FastAPI:
    """An OpenAI-compatible chat server that finds every answer correct."""
    app = FastAPI()

    @app.post("/chat/completions")
    def judge(request: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "correct"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": request["model"], "choices": [choice]}

    return app


@pytest.mark.parametrize("command", [command for command in commands() if command.not_run is None], ids=str)
def test_every_command_has_an_entry(command: Command) -> None:
    known(command)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.pattern)
def test_no_entry_is_left_over(entry: Entry) -> None:
    assert entry in map(entry_of, run_here()), "no page prints such a command"


def _lane(command: Command) -> Any:
    entry = entry_of(command)
    slow = [pytest.mark.slow, pytest.mark.timeout(2 * ENGINES_TIMEOUT_S)]
    return pytest.param(command, id=str(command), marks=[] if entry is None or entry.quick else slow)


def _is_run_here(command: Command, servers: bool) -> bool:
    entry = entry_of(command)
    return entry is not None and not entry.run_by and bool(entry.serves) is servers


@pytest.mark.parametrize("command", [_lane(command) for command in run_here() if _is_run_here(command, servers=False)])
def test_a_printed_command_does_what_it_says(session: Session, command: Command) -> None:
    entry, done = known(command), session.run(command.text).check()
    assert_matches(entry.prints, done.stdout + done.stderr)
    assert [name for name in entry.writes if not (session.clone.folder / name).exists()] == []


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), f"{pattern!r} is not in:\n{text}"


@pytest.mark.parametrize("command", [_lane(command) for command in run_here() if _is_run_here(command, servers=True)])
def test_a_printed_server_is_ready_and_ends_by_ctrl_c(session: Session, command: Command) -> None:
    entry = known(command)
    if entry.serves in session.clone.ports and writer_of(entry.serves) is command:
        session.make((entry.serves,))  # kept for the others, and ended after them
    else:
        with session.server(command, str(free_port())):
            pass


@pytest.mark.parametrize("command", [each for each in run_here() if (entry_of(each) or Entry("")).run_by], ids=str)
def test_what_is_run_elsewhere_is_run_there_as_printed(command: Command) -> None:
    path = ROOT / known(command).run_by
    if path.suffix == ".py":
        assert command in printed_in(path), f"{path} does not read this command out of {command.page}"
    else:
        assert command.text.removeprefix("bash ") in path.read_text(encoding="utf-8")


def printed_in(path: Path) -> list[Command]:
    """The commands that a test file reads out of the pages, by calls with literal arguments."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("printed", "all_printed")]
    return [command for call in named for command in _read(call.func.id, *map(ast.literal_eval, call.args))]


def _read(function: str, page: str, start: str) -> list[Command]:
    return [printed(page, start)] if function == "printed" else all_printed(page, start)
