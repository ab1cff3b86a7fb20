"""Where Hydra finds the training configs: ours (config/) and, without importing verl, upstream's."""

import importlib.util
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from verl_search.platform.upstream import UpstreamMoved

CONFIG_DIR = Path(__file__).parent / "config"
AGENT_LOOP_CONFIG = CONFIG_DIR / "agent_loop.yaml"


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


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """The composed training config `name` (research, cpu or demo), as `main_ppo` gets it."""
    register_with_hydra()
    with initialize_config_dir(version_base=None, config_dir=str(CONFIG_DIR)):
        return compose(config_name=name, overrides=overrides)
