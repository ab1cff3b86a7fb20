"""Settings of verl that have no effect, or another than their name says, on a search rollout.

upstream_settings.yaml lists them, each with its reason. upstream_defaults.yaml holds verl's whole config as it was when
that list was made: a test compares it with the installed verl, so that no new key goes unread.
Does not cover: settings that do not fit together (settings_rules.py).
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from flashrag.errors import did_you_mean
from flashrag.preflight import Finding, error, warning
from verl_search.composition import CONFIG_DIR, leaves

LIST = Path(__file__).with_name("upstream_settings.yaml")
DEFAULTS = Path(__file__).with_name("upstream_defaults.yaml")


class Unhonoured(BaseModel, frozen=True, extra="forbid"):
    """An entry of upstream_settings.yaml, which explains the fields."""

    keys: tuple[str, ...]
    verdict: Literal["refuse", "warn"]
    reason: str
    allowed: tuple[Any, ...] | None = None
    unless: Mapping[str, Any] = {}

    def allows(self, key: str, value: Any) -> bool:
        return value in self.allowed if self.allowed is not None else value == upstream_defaults().get(key)


@functools.cache
def unhonoured_settings() -> tuple[Unhonoured, ...]:
    return tuple(Unhonoured.model_validate(entry) for entry in yaml.safe_load(LIST.read_text(encoding="utf-8")))


@functools.cache
def upstream_defaults() -> Mapping[str, Any]:
    """verl's own values by their dotted keys; a reference to another key stands as it is written."""
    return yaml.load(DEFAULTS.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


@functools.cache
def entry_of(key: str) -> Unhonoured | None:
    """The entry that lists a key, or else the smallest listed group that it is in."""
    entries = {own: entry for entry in unhonoured_settings() for own in entry.keys}
    return next((entries[group] for group in _with_groups(key) if group in entries), None)


def _with_groups(key: str) -> list[str]:
    """A key and the groups that it is in, the smallest first."""
    return [key, *(key[: dot.start()] for dot in reversed([*re.finditer(r"\.", key)]))]


def settings_without_effect(config: DictConfig) -> Iterator[Finding]:
    """An error or a warning for each entry of the list that a composed config goes against."""
    changed: dict[tuple[str, ...], list[str]] = {}
    for key, written in leaves(OmegaConf.to_container(config, resolve=False)).items():
        entry = entry_of(key)
        # A reference may be verl's own, or stand for a value that is fine.
        if entry and not (entry.allows(key, written) or entry.allows(key, OmegaConf.select(config, key))):
            changed.setdefault(entry.keys, []).append(key)
    for entry in unhonoured_settings():
        has_effect = any(
            OmegaConf.select(config, key) in (values if isinstance(values, list) else [values])
            for key, values in entry.unless.items()
        )
        if entry.keys in changed and not has_effect:
            told = ", ".join(f"{key}={OmegaConf.select(config, key)}" for key in changed[entry.keys])
            yield (error if entry.verdict == "refuse" else warning)(f"{told}: {entry.reason}")


@functools.cache
def known_settings() -> frozenset[str]:
    """The dotted keys of verl's config and of ours."""
    ours = (path for path in CONFIG_DIR.glob("*.yaml") if path.stem != "agent_loop")
    groups = [leaves(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in ours]
    return frozenset({*upstream_defaults(), *(key for group in groups for key in group)})


def added_settings(config: DictConfig) -> Iterator[Finding]:
    """A warning for each setting that was added to the config, except alarms and what verl hands on to libraries."""
    known = known_settings()
    for key, value in leaves(OmegaConf.to_container(config, resolve=False)).items():
        if not (key.startswith("alarms.") or any(group in known for group in _with_groups(key))):
            yield warning(
                f"{key}={value}: neither verl nor ReSearch has this setting in its config{did_you_mean(key, known)}; "
                "it has an effect only where verl's code asks for it"
            )
