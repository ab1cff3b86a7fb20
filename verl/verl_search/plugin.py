"""The `verl.plugins` entry point: upstream imports this module in every process (driver, Ray workers, vLLM workers).

It stays light: the platform and what a CPU build needs before verl's own modules are imported. The agent loop, the
dataset, the sampler and the CPU engine are named in the config and imported where they are used. Upstream swallows a
failing plugin import, hence `check_loaded`, which `main_ppo` calls before anything starts.
"""

import importlib.metadata

from flashrag.errors import ReSearchError

ENTRY_POINT_GROUP = "verl.plugins"
ENTRY_POINT_NAME = "verl_search"


class PluginNotLoaded(ReSearchError):
    """Upstream verl did not load this plugin; the message says why."""


def register() -> None:
    """Register the CPU platform and, where it is the one in use, mend what upstream lacks there."""
    from verl.plugin.platform.platform_manager import PlatformRegistry, get_platform

    from verl_search.platform_cpu import PlatformCPU
    from verl_search.upstream import alias_vllm_distribution, name_gloo_once

    PlatformRegistry.register(platform=PlatformCPU.device_name)(PlatformCPU)
    if get_platform().device_name == PlatformCPU.device_name:
        alias_vllm_distribution()
        name_gloo_once()


def check_loaded() -> None:
    """Raise `PluginNotLoaded` unless verl found this plugin and its registration took effect."""
    import verl  # noqa: F401  # importing verl is what loads its plugins
    from verl.plugin.platform.platform_manager import PlatformRegistry

    entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    if ENTRY_POINT_NAME not in entry_points.names:
        raise PluginNotLoaded(
            f"no installed package offers the {ENTRY_POINT_GROUP} entry point {ENTRY_POINT_NAME!r}; "
            "install the plugin: pip install -e verl"
        )
    if PlatformRegistry.get("cpu") is None:
        raise PluginNotLoaded(
            f"the plugin {ENTRY_POINT_NAME!r} is installed but verl did not load it; is VERL_USE_EXTERNAL_PLUGINS set? "
            "Importing verl_search.plugin by hand shows the error that verl hides."
        )


register()
