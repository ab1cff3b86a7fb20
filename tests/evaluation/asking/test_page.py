"""The page of one question in a headless Chromium, over a real episode with the small servers."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from evaluation.asking import AskFacts, Asker, parse_options
from evaluation.asking.page import create_app
from flashrag.episode import Failure, Piece, StepKind, Trajectory
from flashrag.document import Passage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

XSS = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


class Script:
    """What answers: the real asker, or pieces that a test chooses; `gate` holds back what comes after the pieces."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker
        self.pieces: list[Piece] | None = None
        self.error: Failure | None = None
        self.is_open = True
        self.cancelled = 0

    async def answer(self, question: str, show: Callable[[Piece], object]) -> Trajectory:
        if self.pieces is None:
            return await self.asker.answer(question, show)
        for piece in self.pieces:
            show(piece)
        try:
            while not self.is_open:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Trajectory("1", question, (), answer="" if self.error else "Wu", error=self.error)


@pytest.fixture(scope="module")
def script(small_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Script:
    flags = {**small_servers.flags, "save_dir": str(tmp_path_factory.mktemp("asked"))}
    options = parse_options(["--page", *(word for name, value in flags.items() for word in (f"--{name}", value))])
    return Script(Asker(AskFacts(options).settings))


@pytest.fixture(scope="module")
def site(script: Script, served: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        await script.asker.aclose()

    app = create_app(script.answer, "research · <zhou>")
    app.router.lifespan_context = closing
    with served(app, lifespan="on") as url:
        yield url


@pytest.fixture
def page(browser: "Browser", site: str, script: Script) -> Iterator["Page"]:
    script.pieces, script.error, script.is_open = None, None, True
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on(
            "request", lambda request: None if request.url.startswith((site, "data:")) else problems.append(request.url)
        )
        page.goto(site)
        yield page
        assert problems == []


def ask(page: "Page", question: str = "Who was the first king of Zhou?") -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def test_a_question_shows_the_steps_of_its_episode(page: "Page", script: Script):
    ask(page)
    page.locator(".answer", has_text="Wu").wait_for()
    assert page.inner_text("#about") == "research · <zhou>"
    assert page.locator(".step > .who").all_inner_texts() == ["THINK", "QUERY", "RESULT", "GENERATION"]
    assert page.locator(".step > pre").all_inner_texts() == ["t", "Zhou", "<answer>\\boxed{Wu}</answer>"]
    assert page.locator(".step.spliced .passage .who").all_inner_texts() == ["7", "score 1.0000", "8", "score 0.5000"]
    assert re.match(r"1 search, 12 tokens sampled, \d+\.\d s, ended by eos", page.inner_text(".figures"))
    (line,) = script.asker.path.read_bytes().splitlines()
    assert Trajectory.from_json(line).answer == "Wu"
