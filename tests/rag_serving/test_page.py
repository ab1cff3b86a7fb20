"""The page at `/` in a headless Chromium, against the real server application over a real BM25 index."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from flashrag.retriever import check_assets, load_retriever_from
from flashrag.retriever.index_builder import main as build_index
from rag_serving.app import create_app
from rag_serving.settings import ServerSettings
from rag_serving.workers import ThreadWorkers

XSS = '<img src="x" onerror="document.title=1"><script>document.title=2</script><b>bold</b>'
PASSAGES = {
    "rome": '"Rome"\nRome is the capital of Italy.',
    "milan": '"Milan"\nMilan is a city in Italy.\nIt has a cathedral.',
    "paris": '"Paris"\nParis is the capital of France.',
    "evil": f'"{XSS} attack"\n{XSS} attack',
    "long": '"Long"\n' + "lengthy " * 1000,
}


class GatedRetriever:
    """The real retriever; while `gate` is closed its searches wait, `held` of them now."""

    def __init__(self, retriever: Any) -> None:
        self._retriever = retriever
        self.gate = threading.Event()
        self.gate.set()
        self.held = 0

    def rank(self, queries: list[str], num: int) -> Any:
        self.held += 1
        self.gate.wait(30)
        self.held -= 1
        return self._retriever.rank(queries, num)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever, name)


@dataclass
class Site:
    settings: ServerSettings
    retriever: GatedRetriever
    url: str = ""


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, real_server: Callable[..., AbstractContextManager[str]]
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": key, "contents": text}) + "\n" for key, text in PASSAGES.items()))
    assert build_index(["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(folder)]) == 0
    settings = ServerSettings(
        retrieval_method="bm25", index_path=folder / "bm25", corpus_path=corpus,
        max_batch_queries=1, max_queue_queries=1, search_batch_size=1, cache_queries=0,
    )  # fmt: skip
    site = Site(settings, GatedRetriever(load_retriever_from(check_assets(settings))))
    with real_server(create_app(settings, ThreadWorkers(lambda: site.retriever, 1))) as site.url:
        yield site


@dataclass
class Seen:
    """What a page asked for and complained about."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def searches(self) -> int:
        return sum(url.endswith("/search") for url in self.requests)


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def tab(browser: Browser, site: Site, seen: Seen) -> Iterator[Page]:
    with opened(browser, site.url, seen) as tab:
        yield tab


@pytest.fixture
def page(tab: Page, site: Site, seen: Seen) -> Iterator[Page]:
    """The page, just opened; it must have asked only its own origin, and met no error of its own."""
    site.retriever.gate.set()
    tab.goto("about:blank")  # ends what the last test's page still asks for
    tab.emulate_media(color_scheme="light")
    tab.set_viewport_size({"width": 1280, "height": 720})
    seen.requests.clear()
    seen.complaints.clear()
    tab.goto(site.url)
    yield tab
    assert all(url.startswith(site.url + "/") for url in seen.requests)
    assert seen.complaints == []


@contextmanager
def opened(browser: Browser, url: str, seen: Seen) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.clock.install()
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("console", lambda line: "Failed to load resource" in line.text or seen.complaints.append(line.text))
        page.goto(url)
        yield page


def look_again(page: Page) -> None:
    """Let the page's clock leap over the time after which it asks for the server's state again."""
    page.clock.fast_forward(2000)


def search(page: Page, query: str) -> None:
    page.get_by_label("Question or keywords").fill(query)
    page.get_by_role("button", name="Search").click()


def test_a_search_shows_passages_scores_and_the_time(page: Page, site: Site):
    search(page, "Italy city cathedral")
    expect(page.locator("#message")).to_have_text(re.compile(r"^2 results in [\d.]+ m?s$"))
    (milan, rome) = site.retriever.rank(["Italy city cathedral"], 5)[0]
    assert (milan.document.id, rome.document.id) == ("milan", "rome")
    expect(page.locator("#results h3")).to_have_text(["Milan", "Rome"])
    expect(page.locator("#results .passage")).to_have_text(
        ["Milan is a city in Italy.\nIt has a cathedral.", "Rome is the capital of Italy."], use_inner_text=True
    )
    facts = page.locator("#results .facts").all_inner_texts()
    for fact, hit in zip(facts, (milan, rome), strict=True):
        shown, shown_id = re.fullmatch(r"score ([\d.]+) · id (\w+)", fact).groups()
        assert (float(shown), shown_id) == (pytest.approx(hit.score, rel=1e-3), hit.document.id)


def test_the_number_of_results_can_be_chosen(page: Page):
    page.get_by_label("Results", exact=True).first.fill("1")
    search(page, "Italy")
    expect(page.locator("#message")).to_have_text(re.compile("^1 result in"))
    page.get_by_label("Results", exact=True).first.fill("100000")
    search(page, "Italy")
    expect(page.locator("#message")).to_have_text(re.compile(r"The server answered 422: top_n: .*1000"))


def test_the_keyboard_is_enough(page: Page):
    expect(page.get_by_label("Question or keywords")).to_be_focused()
    page.keyboard.type("France")
    page.keyboard.press("Enter")
    expect(page.locator("#results h3")).to_have_text(["Paris"])
    page.keyboard.press("Tab")
    expect(page.locator("#top-n")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Search")).to_be_focused()


def test_an_empty_query_is_said_and_not_sent(page: Page, seen: Seen):
    search(page, "   ")
    expect(page.locator("#message")).to_have_text("Enter a question or some keywords first.")
    expect(page.get_by_label("Question or keywords")).to_be_focused()
    assert seen.searches() == 0


def test_nothing_found_is_said(page: Page):
    search(page, "zebra")
    expect(page.locator("#message")).to_have_text(re.compile("^Nothing found"))


def test_html_in_a_passage_stays_text(page: Page):
    search(page, "attack")
    expect(page.locator("#results h3")).to_have_text([f"{XSS} attack"])
    expect(page.locator("#results .passage")).to_have_text([f"{XSS} attack"])
    assert page.locator("#results :is(img, script, b)").count() == 0
    assert page.title() == "ReSearch retrieval server"


def test_every_file_carries_the_policy_and_the_schema_leaves_the_page_out(site: Site):
    for path in ("/", "/static/page.js", "/static/page.css", "/static/icon.svg"):
        answer = httpx.get(site.url + path)
        policy = answer.headers["content-security-policy"]
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
        assert "default-src 'none'" in policy and "unsafe" not in policy
    assert httpx.get(f"{site.url}/static/../page.py").status_code == 404
    assert httpx.get(f"{site.url}/static/%2e%2e/page.py").status_code == 404
    assert not any(path in ("/", "/static") for path in httpx.get(f"{site.url}/openapi.json").json()["paths"])


def test_the_policy_stops_what_the_code_would_let_through(page: Page, seen: Seen):
    page.evaluate("html => document.body.append(document.createRange().createContextualFragment(html))", XSS)
    page.wait_for_timeout(100)
    assert page.title() == "ReSearch retrieval server"
    assert any("Content Security Policy" in complaint for complaint in seen.complaints)
    seen.complaints.clear()


def test_a_long_passage_is_shown_on_demand(page: Page):
    search(page, "lengthy")
    expect(page.locator("#results .passage")).to_have_text(re.compile("…$"))
    page.get_by_role("button", name="Show all").click()
    assert page.locator("#results .passage").text_content() == "lengthy " * 1000
    expect(page.get_by_role("button", name="Show all")).to_have_count(0)


def test_a_newer_search_replaces_the_older_one(page: Page, site: Site):
    site.retriever.gate.clear()
    search(page, "Italy")
    expect(page.locator("#message")).to_have_text("Searching …")
    expect(page.locator("#search")).to_have_attribute("aria-busy", "true")
    search(page, "France")
    page.wait_for_timeout(100)
    site.retriever.gate.set()
    expect(page.locator("#results h3")).to_have_text(["Paris"])
    expect(page.locator("#search")).not_to_have_attribute("aria-busy", "true")
    page.wait_for_timeout(100)
    expect(page.locator("#results h3")).to_have_text(["Paris"])


def test_escape_gives_a_search_up(page: Page, site: Site):
    site.retriever.gate.clear()
    search(page, "Italy")
    page.get_by_label("Question or keywords").press("Escape")
    expect(page.locator("#message")).to_have_text("Cancelled.")
    site.retriever.gate.set()
    search(page, "France")
    expect(page.locator("#results h3")).to_have_text(["Paris"])


def test_a_busy_server_says_when_to_come_back(page: Page, site: Site):
    site.retriever.gate.clear()
    body = {"query": "Italy"}
    others = [threading.Thread(target=httpx.post, args=(f"{site.url}/search",), kwargs={"json": body | {"top_n": n}})
              for n in (1, 2)]  # fmt: skip
    others[0].start()
    while not site.retriever.held:
        time.sleep(0.01)
    others[1].start()  # one is searched, one waits: the queue is full
    while "rag_queue_queries 1.0" not in httpx.get(f"{site.url}/metrics").text:
        time.sleep(0.01)
    search(page, "France")
    expect(page.locator("#message")).to_have_text(
        re.compile(r"^The server is busy: its queue is full\. Try again in \d+ seconds?\.$")
    )
    look_again(page)
    expect(page.locator("#queue")).to_have_text("1 of 1")
    site.retriever.gate.set()
    for other in others:
        other.join()
    search(page, "France")
    expect(page.locator("#results h3")).to_have_text(["Paris"])


def test_the_state_and_the_load_are_live(page: Page, site: Site):
    expect(page.locator("#status-word")).to_have_text("healthy")
    expect(page.locator("#status-text")).to_have_text("bm25 · 5 passages")
    expect(page.locator("#retrievers")).to_have_text("1 of 1")
    with httpx.Client() as client:
        for _ in range(30):
            client.post(f"{site.url}/search", json={"query": "Italy"})
    look_again(page)
    expect(page.locator("#qps")).to_have_text(re.compile(r"^[1-9][\d.]*$"))
    expect(page.locator("#p50")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(page.locator("#p99")).to_have_text(re.compile(r"^[\d.]+ m?s$"))


def test_a_server_that_goes_away_is_told(page: Page):
    expect(page.locator("#status-word")).to_have_text("healthy")
    page.context.set_offline(True)
    look_again(page)
    expect(page.locator("#status-word")).to_have_text("unreachable")
    search(page, "Italy")
    expect(page.locator("#message")).to_have_text("The server cannot be reached. Is it running?")
    page.context.set_offline(False)
    look_again(page)
    expect(page.locator("#status-word")).to_have_text("healthy")


def test_the_documentation_is_linked_and_offline(page: Page):
    page.get_by_role("link", name="API documentation").click()
    expect(page.locator(".swagger-ui .info")).to_contain_text("ReSearch retrieval server")


def test_a_token_is_asked_for_and_kept_in_the_tab(
    browser: Browser,
    site: Site,
    real_server: Callable[..., AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RESEARCH_SERVER_TOKEN", "s3cret")
    app = create_app(site.settings, ThreadWorkers(lambda: site.retriever, 1))
    with real_server(app) as url, opened(browser, url, Seen()) as page:
        search(page, "Italy")
        expect(page.locator("#message")).to_have_text("Enter the server's token.")
        page.get_by_label("This server asks for a token").fill("s3cret")
        page.keyboard.press("Enter")
        expect(page.locator("#results h3")).to_have_text(["Rome", "Milan"])
        expect(page.locator("#token-form")).to_be_hidden()
        page.reload()
        search(page, "France")
        expect(page.locator("#results h3")).to_have_text(["Paris"])
        look_again(page)
        expect(page.locator("#qps")).not_to_have_text("–")  # /metrics takes it too
        assert "s3cret" not in page.url + page.content()
        assert page.context.cookies() == [] and page.evaluate("localStorage.length") == 0


def test_a_server_that_loads_is_told(
    browser: Browser, site: Site, real_server: Callable[..., AbstractContextManager[str]]
):
    gate = threading.Event()

    def load() -> Any:
        gate.wait(30)
        return site.retriever

    app = create_app(site.settings, ThreadWorkers(load, 1))
    with real_server(app, status=503) as url, opened(browser, url, Seen()) as page:
        expect(page.locator("#status-word")).to_have_text("loading")
        search(page, "Italy")
        expect(page.locator("#message")).to_have_text(re.compile("does not take searches now .*loading.* Try again in"))
        gate.set()
        while httpx.get(f"{url}/health").status_code != 200:
            time.sleep(0.01)
        look_again(page)
        expect(page.locator("#status-word")).to_have_text("healthy")
        search(page, "France")
        expect(page.locator("#results h3")).to_have_text(["Paris"])


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 360), ("dark", 1200)])
def test_it_fits_dark_and_narrow_screens(page: Page, tmp_path: Path, scheme: Any, width: int):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    search(page, "attack lengthy Italy")
    expect(page.locator("#results li")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("body", "h1 span", "dt", ".facts", ".passage", "button", "#message", "#status b", "nav a"):
        assert contrast(page, selector) >= 4.5, selector  # WCAG 2.2, level AA
    assert len(page.screenshot(path=tmp_path / "page.png")) > 10_000


def contrast(page: Page, selector: str) -> float:
    """The contrast of a text with what lies behind it, by WCAG's formula."""
    colors = page.locator(selector).first.evaluate(
        """element => {
            let behind = element;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }"""
    )
    lighter, darker = sorted(map(luminance, colors), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
