"""The shipped training configs, changed for a test. Hydra reads thirty YAML files at each composition, for most of a
second: here it composes each config once in a process, and a test gets a copy with its overrides in it.

Hydra's own reading of overrides is tested where whole commands are (tests/training, tests/docs).
"""

import functools
import pickle

import yaml
from omegaconf import DictConfig, OmegaConf

from verl_search.composition import compose_config


@functools.cache
def _shipped(name: str) -> bytes:
    return pickle.dumps(compose_config(name, []))  # a copy made of it takes a fifth of the time of copy.deepcopy


def composed(name: str, *overrides: str) -> DictConfig:
    """A copy of the config `name` with these `key=value` in it; as for Hydra, only `+key=value` adds a key."""
    config: DictConfig = pickle.loads(_shipped(name))
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        OmegaConf.update(config, key, yaml.safe_load(value), force_add=override.startswith("+"))
    return config
