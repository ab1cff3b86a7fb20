"""The reward that docs/training.md prints, out of a file as a user has it."""

from pathlib import Path
from typing import Any

import pytest

from flashrag.document import Passage
from flashrag.episode import RESEARCH, ToolCall, Trajectory, Usage
from flashrag.metrics import score_answer
from flashrag.reward import MADE_UP, reward_function, try_reward
from flashrag.reward.terms import TERMS
from tests.docs.pages import ROOT, my_reward

FOUND = ToolCall("first king", (Passage("7", "King Wu was the first."),))
PRINTED = ToolCall("print('King Wu')", (Passage("0", "King Wu"),), tool="python")


@pytest.fixture
def setting(tmp_path: Path) -> str:
    (tmp_path / "my_reward.py").write_text(my_reward(), encoding="utf-8")
    return f"{tmp_path}/my_reward.py:reward"


@pytest.mark.parametrize(
    ("fields", "value", "reason"),
    [
        ({"answer": "King Wu", "calls": (FOUND,)}, 0.96, "F1 1.00, found, 2 searches"),  # 1 - 2 * 0.02
        ({"answer": "King Wu"}, 0.46, "F1 1.00, not found, 2 searches"),  # 0.5 - 2 * 0.02
        ({"answer": "King Wu", "calls": (PRINTED,)}, 0.46, "F1 1.00, not found, 2 searches"),
        ({"answer": "Wu", "calls": (FOUND,)}, 2 / 3 - 0.04, "F1 0.67, found, 2 searches"),  # P 1, R 1/2
        ({"answer": "King Wu", "format_valid": False, "format_fault": "no_think"}, 0.0, "format: no_think"),
    ],
)
def test_it_gives_what_it_says(fields: dict[str, Any], value: float, reason: str, setting: str) -> None:
    given = {"format_valid": True, "usage": Usage(searches=2), **fields}
    reward = reward_function(setting)(Trajectory("q", "Who?", ("King Wu",), **given), ("King Wu",))
    assert (reward.value, reward.reason) == (pytest.approx(value), reason)


def test_it_is_short_and_passes_the_trial(setting: str) -> None:
    assert len(my_reward().splitlines()) < 20
    try_reward(setting, MADE_UP, RESEARCH, lambda each: score_answer(each.answer, each.gold_answers)._asdict())


def test_the_page_lists_every_term() -> None:
    table = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("| term | value |")[2]
    listed = [name for line in table.split("\n\n")[0].splitlines() for name in line.split("|")[1:2]]
    named = [name.strip("` ") for cell in listed for name in cell.split(",") if "`" in name]
    assert named == list(TERMS)
