"""Settings of every test process, made before any library reads them: one thread each, no model hub. And a browser."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# Two cores and several processes: more OpenMP threads than cores make every barrier wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from flashrag.errors import UserError
from scripts.browser import find_chromium, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A headless Chromium; missing in CI it is a failure. A module that uses it has no asynchronous tests."""
    try:
        find_chromium()
    except UserError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    with open_browser() as browser:
        yield browser
