"""The smoke's figures and verdicts: one line of JSON at the end of the report."""

import json
from typing import Any

import pytest

FIGURES = pytest.StashKey[dict[str, Any]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, Any]:
    return pytestconfig.stash.setdefault(FIGURES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if FIGURES not in config.stash:
        return
    reports = [
        report
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    verdicts = {report.nodeid.rpartition("::test_")[2]: report.outcome for report in reports}
    terminalreporter.write_line(json.dumps({**config.stash[FIGURES], "verdicts": verdicts}))
