"""Recipes: training runs by name, published ones and ours, one file each in recipes/, before the flags of a command.

Does not cover: what the flags and settings mean (flags.yaml, config/research.yaml).
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flashrag.config import read_yaml_mapping, validated
from flashrag.errors import UserError, did_you_mean
from verl_search.composition import quoted

FOLDER = Path(__file__).with_name("recipes")


class Stage(BaseModel, frozen=True, extra="forbid"):
    """A step of a whole path (stages.py)."""

    name: str
    command: str


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """A file of recipes/; research-pilot.yaml explains the fields."""

    name: str
    title: str
    source: tuple[str, ...]
    absent: str = ""
    machine: str = ""
    differs: tuple[str, ...] = ()
    flags: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    commands: Mapping[str, tuple[str, ...]] = {}
    inputs: Mapping[str, tuple[str, ...]] = {}
    server: Mapping[str, str] = {}
    pieces: Mapping[str, str] = {}
    stages: tuple[Stage, ...] = ()

    @property
    def line(self) -> str:
        return f"{self.name:<24} {f'not here: {self.absent}' if self.absent else f'{self.title} ({self.machine})'}"

    @property
    def summary(self) -> str:
        """What the run is modelled on, and how it differs."""
        differs = (f"\n  differs: {difference}" for difference in self.differs)
        return f"recipe {self.name}: {self.title}\n  source: {'; '.join(self.source)}{''.join(differs)}"

    def words(self) -> list[str]:
        """The recipe as arguments of training/run.sh."""
        settings = {"search.recipe": self.name, **self.settings}
        flags = [f"--{flag}={value}" for flag, value in self.flags.items()]
        return [*flags, *(f"{key}={quoted(value)}" for key, value in settings.items())]


def chosen_recipe(argv: Sequence[str]) -> str | None:
    """The value of --recipe, read before the other flags, because a recipe gives some that are required."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?", const="help")
    return parser.parse_known_args(argv)[0].recipe


@cache
def all_recipes() -> dict[str, Recipe]:
    """By their names, those that are not here among them."""
    files = {path.stem: path for path in FOLDER.glob("*.yaml")}
    values = {name: {"name": name, **read_yaml_mapping(files[name])} for name in sorted(files)}
    return {name: validated(Recipe, values[name], f"the recipe {name}") for name in values}


def read_recipe(name: str) -> Recipe:
    """The recipe of this name; raises `UserError` if there is none, or if it is not here."""
    recipes = all_recipes()
    if name not in recipes:
        raise UserError(f"--recipe {name!r}: no such recipe{did_you_mean(name, recipes)}; --recipe help lists them")
    if absent := recipes[name].absent:
        raise UserError(f"--recipe {name} is not here: {absent}; docs/recipes.md says more")
    return recipes[name]
