"""The page on recipes holds the values, the memory and the commands of the recipes' files."""

import json
from typing import Any

import pytest

from tests.docs.pages import commands, pages
from tests.end_to_end.test_recipes import REWARDS, STANDS_FOR
from tests.training.test_recipe import FACTS, PATHS, RECIPES, STAGED, composed, gpu_bytes
from training.recipe import all_recipes, read_recipe
from verl_search.preflight.memory import training_memory
from verl_search.preflight.sizes import checkpoint_bytes

PAGE = pages()["docs/recipes.md"]


def table(first: str) -> list[list[str]]:
    """The cells of the table whose heading begins so, row by row, without the backticks."""
    lines = PAGE[PAGE.index(f"\n| {first} |") + 1 :].partition("\n\n")[0].splitlines()
    cells = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]
    return [cells[0], *cells[2:]]


def shown(value: Any) -> str:
    """1.0e-06 as people write it; the other values as JSON has them."""
    return value if isinstance(value, str) else json.dumps(value).replace("e-0", "e-")


def test_every_recipe_and_every_name_that_is_not_here_has_a_row() -> None:
    recipes = all_recipes()
    assert {row[0]: row[1:3] for row in table("recipe")[1:]} == {
        name: [recipes[name].title, recipes[name].machine] for name in (*RECIPES, *STAGED)
    }
    assert {row[0]: row[1:] for row in table("name")[1:]} == {
        name: [recipe.title, recipe.absent] for name, recipe in recipes.items() if recipe.absent
    }
    for name, recipe in recipes.items():
        assert f"- `{name}`: {'; '.join(recipe.source)}\n" in PAGE


def test_what_was_seen_here_is_told_of_every_recipe() -> None:
    rows = {row[0]: row[1:] for row in table("seen here")[1:]}
    assert set(rows) - STAGED == set(RECIPES) == {*REWARDS, *STANDS_FOR}
    for name in RECIPES:
        composes, trains, _ = rows[name]
        assert composes == "yes"  # tests/training/test_recipe.py, tests/verl_search/test_settings.py
        assert trains.startswith(f"as {STANDS_FOR[name]}, " if name in STANDS_FOR else ("yes: ", "not yet"))


def test_the_values_are_those_of_the_files() -> None:
    (_, *names), *rows = table("flag or setting")
    assert set(names) == set(RECIPES)
    keys = [row[0].replace("…", "actor_rollout_ref.") for row in rows]
    for column, name in enumerate(names, start=1):
        recipe = read_recipe(name)
        flags = {f"--{flag}": value for flag, value in recipe.flags.items() if flag not in PATHS}
        values = {key: shown(value) for key, value in {**flags, **recipe.settings}.items()}
        told = {key: row[column] for key, row in zip(keys, rows, strict=True) if row[column]}
        assert told == values


@pytest.mark.parametrize("name", RECIPES)
def test_the_sizes_are_those_of_the_functions(name: str) -> None:
    config = composed(name)
    model = FACTS[config.actor_rollout_ref.model.path]
    found = training_memory(model, config, gpu_bytes(name))
    checkpoint = checkpoint_bytes(model, config)
    assert found and found.cache_tokens and checkpoint
    (told,) = [row[1:] for row in table("on paper") if row[0] == name]
    gb = [sum(sizes.values()) / 10**9 for sizes in (found.rollout, found.update, found.host)]
    assert told == [*(f"{size:.0f} GB" for size in (*gb, checkpoint / 10**9)), f"{found.cache_tokens / 1000:,.0f} k"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_whole_path_is_printed_in_its_order(name: str) -> None:
    section = PAGE.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    last = PAGE[: PAGE.index(section)].count("\n") + section.count("\n")
    first = PAGE[: PAGE.index(section)].count("\n")
    printed = [each.text for each in commands() if each.page == "docs/recipes.md" and first < each.line <= last + 1]
    around = read_recipe(name).commands
    trained = printed[len(around["data"]) + len(around["server"])]
    url = "" if "search_url" in read_recipe(name).flags else " --search_url http://10.0.0.1:8000"
    assert trained == f"bash training/run.sh --recipe {name}{url}"
    assert printed == [*around["data"], *around["server"], trained, *around["evaluation"]]
