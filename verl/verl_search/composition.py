"""The training config as Hydra composes it from config/; each mistake in a setting becomes a `UserError` of one line.

Our configs name upstream's in their defaults lists, and upstream's are found without importing verl.
Does not cover: what the settings mean (settings.py) and whether they fit together (preflight/).
"""

import functools
import importlib.util
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flashrag.errors import UserError, did_you_mean
from flashrag.system.machine import computes_in_bfloat16
from verl_search.platform.upstream import UpstreamMoved

CONFIG_DIR = Path(__file__).parent / "config"
CONFIG_NAMES = ("research", "cpu", "demo")
WARM_START_CONFIGS = ("warm_start", "warm_start_cpu")
ONE_CONFIG = (
    "one command trains one config: start it once for each value. A list is written [a,b]; text with a comma is quoted"
)
NO_REFERENCE = "${…} refers to another setting, and text in the config cannot hold it"
# Null means that the processor decides; the first is a training's, the second a warm start's.
PRECISIONS = ("actor_rollout_ref.rollout.dtype", "engine.mixed_precision.param_dtype")
HELD_PATHS = ("trainer.default_local_dir", "search.trajectory_dir")
_KEY = re.compile(r"[+~]{0,2}[a-zA-Z_$][\w$-]*([./@:][\w$-]+)*")
# Mappings that verl hands on to a library: each key in them may be left out.
_FREE_MAPPING = re.compile(r"(_kwargs|override_(optimizer_)?config)\.")


def upstream_config_dir() -> Path:
    """The folder of verl's own configs. Importing verl takes half a minute; finding its folder does not."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise UpstreamMoved("the package verl is not installed; install the pinned versions: bash scripts/setup.sh")
    path = Path(spec.origin).parent / "trainer" / "config"
    if not (path / "ppo_trainer.yaml").is_file():
        raise UpstreamMoved(f"{path}/ppo_trainer.yaml is gone; install the pinned versions: bash scripts/setup.sh")
    return path


class UpstreamSearchPath(SearchPathPlugin):
    """Lets our configs name verl's in their defaults list."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="verl", path=f"file://{upstream_config_dir()}")


def register_with_hydra() -> None:
    """Add verl's configs to Hydra's search path."""
    Plugins.instance().register(UpstreamSearchPath)


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """The config `name` of a training or a warm start with `key=value` overrides, as its process gets it."""
    with in_one_line(name):
        check_overrides(overrides)
        config = _compose(name, overrides)
        settle(config)
        if overrides:
            check_composed(config, name, overrides)
    return config


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    register_with_hydra()
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # that of hydra.main, while it runs
    try:
        with initialize_config_dir(version_base=None, config_dir=str(CONFIG_DIR)):
            return compose(config_name=name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = outer


@functools.cache
def shipped_settings(name: str) -> Mapping[str, Any]:
    """The settings of a config without overrides, by their dotted keys; references are not resolved.

    Those of the full run stand for a config of the user's own, which builds on it.
    """
    shipped = _compose(name if name in CONFIG_NAMES + WARM_START_CONFIGS else "research", ())
    return leaves(OmegaConf.to_container(shipped, resolve=False))


def leaves(group: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted keys; an empty mapping is a value.

    >>> leaves({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in group.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def quoted(value: object) -> str:
    """A value in Hydra's grammar, in which text may hold any character; raises `UserError` for text that cannot pass.

    >>> quoted("it's, a=b"), quoted(True), quoted(2)
    ("'it\\\\'s, a=b'", 'true', '2')
    """
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if value == "???":
        raise UserError("'???' cannot stand in the training config: it marks a value that is missing")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{value!r} is not text in UTF-8, which the training config is written in") from error
    text = re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", value)  # OmegaConf's way to write ${ as text
    return QuotedString(text, Quote.single).with_quotes()


def settle(config: DictConfig) -> None:
    """Complete what Hydra composed, before anything reads it: a CPU's precision, and paths that hold any text."""
    choose_precision(config)
    hold_paths(config)


def choose_precision(config: DictConfig) -> None:
    """Let a CPU compute in bfloat16 where it can do that itself, else in float32, unless a config says which."""
    if config.trainer.device == "cpu":
        for key in PRECISIONS:
            if OmegaConf.select(config, key, default=MISSING) is None:
                OmegaConf.update(config, key, usual_precision())


def usual_precision() -> str:
    """In which the processor computes where nobody says which."""
    return "bfloat16" if computes_in_bfloat16() else "float32"


def hold_paths(config: DictConfig) -> None:
    """Let a run's folder hold any text. verl resolves references twice, and would take `${` in a text for one.

    A `Path` is not resolved. verl and our trainer only join these with other names.
    """
    texts = {key: str(OmegaConf.select(config, key, throw_on_resolution_failure=False)) for key in HELD_PATHS}
    for key, text in texts.items():
        if "${" in text:
            OmegaConf.update(config, key, Path(text))


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `UserError` for a `key=value` that Hydra cannot read, or whose effect nobody wants in one training run."""
    with in_one_line():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    for word, override in zip(overrides, parsed, strict=True):
        key = override.key_or_group
        if not key:
            raise UserError(_unreadable(word))
        if override.is_sweep_override() or (key == "hydra.mode" and override.value() != "RUN"):
            raise UserError(f"{word!r}: {ONE_CONFIG}: {_in_quotes(word)}")
        if override.is_delete() and not _FREE_MAPPING.search(key):
            raise UserError(f"{word!r} takes a setting away that is read in training; give it a value: {key}=null")
        if override.value() == "???":
            raise UserError(f"{word!r}: ??? marks a value that is missing; give it one")


def check_command_line(words: Sequence[str]) -> None:
    """Raise `UserError` for Hydra's flags of many runs, and for what `check_overrides` refuses."""
    if many := {"-m", "--multirun"} & set(words):
        raise UserError(f"{many.pop()}: {ONE_CONFIG}")
    check_overrides([word for word in words if word.startswith("~") or ("=" in word and not word.startswith("-"))])


def check_settings(words: Sequence[str], nearest_flag: Callable[[str], str]) -> None:
    """`check_command_line`, for words that must all be settings; `nearest_flag` completes the error about another."""
    check_command_line(words)
    for word in words:
        if word.startswith("-") or not ("=" in word or word.startswith("~")):
            raise UserError(f"unknown argument {word!r}{nearest_flag(word)}")


def check_composed(config: DictConfig, name: str, overrides: Sequence[str]) -> None:
    """Raise `UserError` for a reference that leads nowhere, and for a value of another kind than the shipped one."""
    _check_kinds(leaves(OmegaConf.to_container(config, resolve=False)), shipped_settings(name))
    try:
        resolved = leaves(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(_unresolved(error, overrides, name)) from error
    for key, value in resolved.items():
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{key}={value!r}: {NO_REFERENCE}")


def _check_kinds(given: Mapping[str, Any], shipped: Mapping[str, Any]) -> None:
    for key, default in shipped.items():
        if key in given:
            expected = _expected(default, given[key])
            if expected is not None:
                raise UserError(f"{key}={given[key]!r}: expected {expected}, for example {default!r}")
            continue
        if default not in (None, {}) and any(other.startswith(f"{key}.") for other in given):
            raise UserError(f"{key} is no group of settings; expected one value, for example {default!r}")
        group = next((group for group in _groups([key]) if group in given), None)
        if group is not None and not (given[group] is None and group.startswith("alarms.")):  # null: no such alarm
            raise UserError(f"{group}={given[group]!r}: {group} is a group of settings; set those in it, such as {key}")


def _expected(default: Any, value: Any) -> str | None:
    """What was expected, if a value is not of the kind of the shipped one; null and references are of any kind."""
    if default is None or value is None or _is_reference(default) or _is_reference(value):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return None if is_number else "a number"
    if isinstance(default, list):
        return None if isinstance(value, list | str) else "a list"
    if isinstance(default, dict):
        return None if isinstance(value, dict) else "a mapping"
    return "text" if isinstance(value, dict) else None


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


@contextmanager
def in_one_line(name: str = "research") -> Iterator[None]:
    """Raise Hydra's and OmegaConf's errors as a `UserError` that says in one line what to change."""
    try:
        yield
    except OverrideParseException as error:
        raise UserError(_unreadable(error.override)) from error
    except MissingConfigException as error:
        options = ", ".join(error.options or CONFIG_NAMES)
        raise UserError(f"there is no config {error.missing_cfg_file!r}; choose one of: {options}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explanation(error, name)) from error


def _explanation(error: Exception, name: str) -> str:
    text = " ".join(str(error).split())
    if unknown := re.match(r"Could not override '([^']+)'", text):
        # For a mapping as the value the cause names the key in it.
        key = max(unknown[1], str(getattr(error.__cause__, "full_key", "")), key=len)
        return f"unknown setting {key!r}{_nearest(key, name)}"
    if twice := re.match(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"+{twice[1]} adds a setting that is there already; give it once, without the + if the config has it"
    if "looks like a config group" in text:
        return f"{text} A setting is written key=value, with dots in the key"
    cause = f" ({' '.join(str(error.__cause__).split())})" if error.__cause__ else ""
    return f"the training config cannot be used: {text}{cause}"


def _nearest(key: str, name: str) -> str:
    if _FREE_MAPPING.search(key):
        return f"; verl hands it on, so it can be added: +{key}=…"
    known = [*shipped_settings(name), *_groups(shipped_settings(name))]
    named_alike = [full for full in known if full.rpartition(".")[2] == key]
    if hint := did_you_mean(key, known) or (did_you_mean(named_alike[0], named_alike) if len(named_alike) == 1 else ""):
        return hint
    return f"; most likely it is a typo: +{key}=… would add a setting that neither verl nor ReSearch has in its config"


def _groups(keys: Iterable[str]) -> set[str]:
    return {key[: dot.start()] for key in keys for dot in re.finditer(r"\.", key)}


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not _KEY.fullmatch(key):
        return f"{override!r} is not a setting; expected key=value, such as trainer.total_epochs=3"
    if value.startswith(("[", "{")):
        return f"{override!r} cannot be read: a list is written [a,b], a mapping {{a: b}}, and text in them is quoted"
    if "${" in value:
        return f"{override!r} cannot be read: {NO_REFERENCE}"
    return f"{override!r} cannot be read: quote its value, and the whole for the shell: {_in_quotes(override)}"


def _in_quotes(override: str) -> str:
    """How to give the value of an override as text: quoted for Hydra, and for the shell."""
    key, _, value = override.partition("=")
    text = QuotedString(value.strip("'\""), Quote.double).with_quotes().replace("\n", "\\n")
    return shlex.quote(f"{key}={text}")


def _unresolved(error: OmegaConfBaseException, overrides: Sequence[str], name: str) -> str:
    reason = str(error).partition("\n")[0]
    missing = re.search(r"Interpolation key '([^']+)' not found", reason)
    references = [word for word in overrides if "${" in word]
    culprit = next((word for word in references if missing and missing[1] in word), *references[:1] or [error.full_key])
    hint = did_you_mean(missing[1], shipped_settings(name)) if missing else ""
    return f"{culprit!r} cannot be resolved: {reason}{hint}; {NO_REFERENCE}"
