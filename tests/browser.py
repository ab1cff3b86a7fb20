"""A headless Chromium for the tests of the pages, and a picture of one for the documentation:

    python -m tests.browser --url http://127.0.0.1:8000 --query "…" --output docs/server-page.png

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
    parser = CommandParser(prog="python -m tests.browser", description="Photograph the retrieval server's page.")
    parser.add_argument("--url", required=True, metavar="URL", help="address of a running retrieval server")
    parser.add_argument("--query", required=True, help="query to search for before the picture is taken")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args(argv)
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1180, "height": 780})
        page.goto(options.url)
        page.fill("#query", options.query)
        page.press("#query", "Enter")
        page.wait_for_selector("#results li")
        page.wait_for_timeout(6000)  # until the figures have a few samples
        page.screenshot(path=options.output)
    print(options.output)


if __name__ == "__main__":
    sys.exit(main())
