"""The examples (`>>>`) in the docstrings of our packages give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / "flashrag/flashrag", ROOT / "verl/verl_search"]
PACKAGES += [ROOT / name for name in ("rag_serving", "evaluation", "training", "scripts")]
MODULES = [
    ".".join(path.relative_to(package.parent).with_suffix("").parts)
    for package in PACKAGES
    for path in sorted(package.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0, "an example stands where doctest does not look: in no docstring of this module"
    assert results.failed == 0
