"""The report in a headless Chromium, opened as a file: no server, no network."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evaluation.report.page import Run, render_page
from flashrag.document import Passage
from flashrag.episode import Failure, Segment, Source, ToolCall, Trajectory, Usage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TEN_THOUSAND = 10_000
XSS = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'


def trajectory(number: int) -> Trajectory:
    """A quarter is right, every tenth failed; number 7,777 alone holds a rare word, in a passage."""
    right, failed = number % 4 == 0, number % 10 == 9
    contents = f"{XSS} passage {number}" + (" zanzibar" if number == 7777 else "")
    return Trajectory(
        f"q{number}",
        f"Who is number {number}?",
        (f"passage {number}",),
        answer="" if failed else f"passage {number}" if right else f"<b>{number}</b>",
        end_reason="failed" if failed else "length" if number % 3 == 0 else "eos",
        usage=Usage(searches=number % 5, completion_tokens=number % 700),
        segments=(Segment(Source.MODEL, "I think. " * 40), Segment(Source.RESULT, "", call=0)),
        calls=(ToolCall("query", (Passage(str(number), contents, 0.5),)),),
        error=Failure("SearchError", "gone") if failed else None,
    )


def rollout(number: int) -> Trajectory:
    return Trajectory(
        f"t{number}",
        f"Rollout {number}?",
        ("y",),
        answer="y",
        dialect="research",
        usage=Usage(searches=1, completion_tokens=2),
        segments=(
            Segment(Source.MODEL, "<search> x </search>", (1, 2), (-0.25, -0.5)),
            Segment(Source.RESULT, "<result> y </result>", (3, 4, 5)),
        ),
        step=number,
    )


TOKENS = {1: "<search> x", 2: " </search>"}


@pytest.fixture(scope="module")
def page(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator["Page"]:
    runs = [
        Run("naive", [trajectory(number) for number in range(TEN_THOUSAND)]),
        Run("training", [rollout(number) for number in (1, 2, 10)], decode=lambda ids: TOKENS.get(ids[0], "r")),
    ]
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_page("A <report>", "<table></table>", [XSS], [], runs), encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    started = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    assert time.perf_counter() - started < 30  # about one second on an idle machine
    yield page
    assert problems == []
    context.close()


@pytest.fixture(autouse=True)
def fresh(page: "Page") -> None:
    for name in ("run", "verdict", "ended", "step"):
        page.select_option(f"#{name}", "")
    page.fill("#text", "")
    expect_count(page, f"{TEN_THOUSAND + 3} of {TEN_THOUSAND + 3}, ")


def expect_count(page: "Page", start: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_contain_text(start, timeout=30_000)


def test_only_the_rows_in_sight_exist(page):
    assert page.locator(".row").count() < 60
    page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight }")
    page.locator(".row", has_text="Rollout 10?").wait_for()
    assert page.locator(".row").count() < 60


def test_filters_narrow_the_list_together(page):
    page.select_option("#verdict", "right")  # every fourth of 10,000, but no tenth; and the three rollouts
    expect_count(page, "2503 of 10003, 2503 right")
    page.select_option("#run", "naive")
    expect_count(page, "2500 of")
    page.select_option("#ended", "length")  # every twelfth
    expect_count(page, "834 of")


def test_text_is_found_in_questions_and_inside_passages(page):
    page.fill("#text", "number 1234?")
    expect_count(page, "1 of")
    page.fill("#text", "ZANZIBAR")
    expect_count(page, "1 of")
    assert "Who is number 7777?" in page.inner_text("#detail")
    page.fill("#text", "no such words")
    expect_count(page, "0 of")
    assert "No trajectory fits" in page.inner_text("#detail")


def test_a_trajectory_shows_its_passages_with_score_and_answer(page):
    page.fill("#text", "number 1234?")
    page.locator("#detail h2", has_text="number 1234?").wait_for()
    detail = page.locator("#detail")
    assert "score 0.5000" in detail.inner_text()
    assert detail.locator(".badge").inner_text() == "holds the answer"
    assert detail.locator("mark").all_inner_texts() == ["passage 1234"]
    assert "wrong" in detail.locator("dl").inner_text()


def test_nothing_of_a_passage_or_an_answer_becomes_markup(page):
    page.fill("#text", "number 1234?")
    page.locator("#detail h2", has_text="number 1234?").wait_for()
    assert page.title() == "A <report>"
    assert page.locator("#detail img, #detail b, #results img").count() == 0
    assert XSS in page.inner_text("#detail")


def test_the_arrow_keys_move_through_the_list(page):
    page.locator("#list").press("ArrowDown")
    page.locator("#detail h2", has_text="number 1?").wait_for()
    page.locator("#list").press("PageDown")
    page.locator("#detail h2", has_text="number 11?").wait_for()
    assert page.locator(".row[aria-selected=true]").inner_text().startswith("Who is number 11?")


def test_a_rollout_shows_sampled_against_spliced_tokens_and_the_mask(page):
    page.select_option("#step", "10")
    expect_count(page, "1 of")
    page.locator("#detail h2", has_text="Rollout 10?").wait_for()
    blocks = page.locator("#detail .step .who").all_inner_texts()
    assert blocks == [
        "model · 2 tokens · sampled, trained on (mask 1)",
        "result · 3 tokens · spliced, masked (mask 0)",
    ]
    assert page.locator("#detail .token").first.get_attribute("title") == "log-prob -0.2500"


def test_steps_are_in_the_order_of_numbers(page):
    assert page.locator("#step option").all_inner_texts() == ["all", "1", "2", "10"]
