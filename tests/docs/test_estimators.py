"""Every estimator, loss and setting of docs/training.md composes, passes our rules and verl's own validation."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from flashrag.preflight import Severity, examine
from tests.docs.pages import ROOT
from tests.docs.test_tables import section
from tests.verl_search.composing import composed
from verl_search.main_ppo import complete, validate
from verl_search.preflight.settings_rules import CHOICES, ESTIMATORS, SETTINGS_RULES

SECTION = section("docs/training.md", "Estimators and losses")
ACTOR = "actor_rollout_ref.actor"
FIRST = {
    "algorithm.adv_estimator": "algorithm.adv_estimator",
    "…policy_loss.loss_mode": f"{ACTOR}.policy_loss.loss_mode",
}
INPUT = (
    *("search.url=http://127.0.0.1:1", "data.train_files=train.parquet", "data.val_files=dev.parquet"),
    *(f"actor_rollout_ref.model.path={ROOT}/training/demo/base_model", f"{ACTOR}.ppo_mini_batch_size=128"),
)


def rows() -> Iterator[tuple[str, ...]]:
    """The settings of each row: those of the first column by its heading, and every `key=value`."""
    for table in re.findall(r"(?:^\|.*\n)+", SECTION, re.MULTILINE):
        heading, _, *lines = table.splitlines()
        key = FIRST.get(heading.split("|")[1].strip().strip("`"))
        for line in lines:
            quoted = re.findall(r"`([^`]+)`", line)
            settings = [word.replace("…", f"{ACTOR}.") for words in quoted for word in words.split() if "=" in word]
            names = [name for name in re.findall(r"`(\w+)`", line.split("|")[1]) if key]
            yield from ((f"{key}={name}", *settings) for name in names) if names else [tuple(settings)] * bool(settings)


ROWS = list(rows())


def test_every_estimator_and_loss_has_a_row() -> None:
    named = {key: {row[0].rpartition("=")[2] for row in ROWS if row[0].startswith(f"{key}=")} for key in FIRST.values()}
    # The loss bypass_mode stands with its setting, in the third table.
    of_losses = {str(name) for name in CHOICES[f"{ACTOR}.policy_loss.loss_mode"]} - {"bypass_mode"}
    assert named == {"algorithm.adv_estimator": set(ESTIMATORS), f"{ACTOR}.policy_loss.loss_mode": of_losses}


@pytest.mark.parametrize("settings", ROWS, ids=lambda row: row[0].rpartition(".")[2])
@pytest.mark.parametrize("name", ["research", "cpu"])
@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_a_row_composes_and_passes_the_rules_and_verls_validation(name: str, settings: tuple[str, ...]) -> None:
    config: Any = composed(name, *INPUT, *settings)
    assert [each for each in examine(SETTINGS_RULES, config) if each.severity is Severity.ERROR] == []
    complete(config)
    validate(config)
