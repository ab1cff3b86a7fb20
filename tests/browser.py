"""A headless Chromium for the tests of the pages, and a picture of one for the documentation:

    python -m tests.browser --url http://127.0.0.1:8000 --query "…" --output docs/server-page.png
    python -m tests.browser --url http://127.0.0.1:8020 --query "…" --output docs/ask-page.png \\
        --field "#question" --until ".figures:not(:empty)" --height 1200

Chromium itself comes from the system: scripts/setup_browser.sh.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flashrag.errors import UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]  # root in a container, no display
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]  # no traffic of its own


def find_chromium() -> str:
    """The program that RESEARCH_CHROMIUM names, else the first of the usual names; raises `UserError` without one."""
    named = os.environ.get("RESEARCH_CHROMIUM")
    for name in (named,) if named else NAMES:
        if path := shutil.which(name):
            return path
    raise UserError(f"no Chromium is there ({named or ', '.join(NAMES)}); run scripts/setup_browser.sh")


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """A headless Chromium for the time of the block, in which this thread's event loop runs: no `asyncio.run` there."""
    executable = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="python -m tests.browser", description="Photograph a page of ours that has answered.")
    parser.add_argument("--url", required=True, metavar="URL", help="address of the page")
    parser.add_argument("--query", required=True, help="what to type before the picture is taken")
    parser.add_argument("--field", default="#query", help="where to type it")
    parser.add_argument("--until", default="#results li", help="what appears with the answer")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--height", type=int, default=780, help="of the picture")
    options = parser.parse_args(argv)
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1180, "height": options.height})
        page.goto(options.url)
        page.fill(options.field, options.query)
        page.press(options.field, "Enter")
        page.wait_for_selector(options.until)
        page.wait_for_timeout(6000)  # until the figures have a few samples
        page.screenshot(path=options.output)
    print(options.output)


if __name__ == "__main__":
    sys.exit(main())
