"""The page of one question in a headless Chromium, over a real episode with the small servers."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from evaluation.asking import Asker, AskFacts, parse_options
from evaluation.asking.page import create_app
from flashrag.document import Passage
from flashrag.episode import Failure, Piece, StepKind, Trajectory

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
        problems, asked = list[str](), list[str]()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.on(
            "request", lambda request: None if request.url.startswith((site, "data:")) else problems.append(request.url)
        )
        page.goto(site)
        yield page
        assert [text for text in problems if "net::ERR_FAILED" not in text] == []  # a test's own


def ask(page: "Page", question: str = "Who was the first king of Zhou?") -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def test_a_question_shows_the_steps_of_its_episode(page: "Page", script: Script):
    ask(page)
    page.locator(".answer", has_text="Wu").wait_for()
    assert page.inner_text("#about") == "research · <zhou>"
    assert page.locator(".step > .who").all_inner_texts() == ["THINK", "QUERY", "RESULT", "GENERATION"]
    assert page.locator(".step > pre").all_inner_texts() == ["t", "Zhou", "<answer>\\boxed{Wu}</answer>"]
    told = page.locator(".step.spliced .passage .who").all_inner_texts()
    assert " ".join(map(str.strip, told)) == "7 score 1.0000 8 score 0.5000"
    assert re.fullmatch(r"1 search, 12 tokens, \d+\.\d s, ended by eos", page.inner_text(".figures"))
    assert page.input_value("#question") == ""
    (line,) = script.asker.path.read_bytes().splitlines()
    assert Trajectory.from_json(line).answer == "Wu"


def test_steps_are_shown_as_they_come_and_nothing_of_them_becomes_markup(page: "Page", script: Script):
    script.is_open = False
    script.pieces = [
        Piece(StepKind.THINK, ""),
        Piece(StepKind.THINK, "I am", starts=False),
        Piece(StepKind.THINK, f" {XSS}", starts=False),
        Piece(StepKind.RESULT, "", passages=(Passage("7", f'"{XSS}"\n{XSS}', 0.5),)),
        Piece(StepKind.THINK, "no longer counts"),
        Piece(StepKind.GENERATION, "", retracts=True),
        Piece(StepKind.QUERY, "next"),
    ]
    ask(page, XSS)
    page.locator(".live .step", has_text="next").wait_for()  # while the answer is not there yet
    assert page.locator(".step > .who").all_inner_texts() == ["THINK", "RESULT", "QUERY"]
    assert page.inner_text(".step.think pre") == f"I am {XSS}"
    assert page.inner_text("h2") == XSS
    assert page.locator("main img, main b, main script").count() == 0
    assert page.title() == "ReSearch: ask"
    script.is_open = True
    page.locator(".answer", has_text="Wu").wait_for()
    assert page.locator(".live").count() == 0
    assert page.locator("#stop").is_hidden()


@pytest.mark.parametrize("way", ["Stop", "Escape", "another question"])
def test_an_answer_can_be_given_up(page: "Page", script: Script, way: str):
    script.is_open, script.pieces, script.cancelled = False, [Piece(StepKind.THINK, "for ever")], 0
    ask(page)
    page.locator(".step", has_text="for ever").wait_for()
    if way == "Stop":
        page.click("#stop")
    elif way == "Escape":
        page.press("#question", "Escape")
    else:
        ask(page, "Another?")
    page.locator(".answer.failed", has_text="stopped").wait_for()
    while not script.cancelled:  # the model is no longer asked, either
        page.wait_for_timeout(20)
    script.is_open = True
    if way == "another question":
        page.locator("article:first-child .answer", has_text="Wu").wait_for()
        assert page.locator("h2").all_inner_texts() == ["Another?", "Who was the first king of Zhou?"]


def test_an_error_of_a_server_is_one_line(page: "Page", script: Script):
    script.pieces, script.error = (
        [Piece(StepKind.THINK, "t")],
        Failure("SearchError", "search failed:\n http://r is gone"),
    )
    ask(page)
    page.locator("#message[data-kind=error]", has_text="is gone").wait_for()
    assert page.inner_text("#message") == "SearchError: search failed: http://r is gone"
    assert page.inner_text(".answer.failed") == "SearchError: search failed: http://r is gone"
    assert page.locator(".step").count() == 1
    ask(page, "   ")
    page.locator("#message", has_text="Write a question first.").wait_for()
    assert page.locator("article").count() == 1


def test_a_lost_server_is_told(page: "Page"):
    page.route("**/ask", lambda route: route.abort())
    ask(page)
    page.locator("#message", has_text="cannot be reached: is ask.py still running?").wait_for()
    page.unroute("**/ask")
    page.route(
        "**/ask", lambda route: route.fulfill(body='{"kind": "think", "text": "t", "passages": [], "starts": true}\n')
    )
    ask(page)
    page.locator("#message", has_text="the answer broke off: is ask.py still running?").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen_in_both_colour_schemes(page: "Page", scheme: str):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 320, "height": 640})
    ask(page, "w" * 200)
    page.locator(".answer", has_text="Wu").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert brightness < 80 if scheme == "dark" else brightness > 200
