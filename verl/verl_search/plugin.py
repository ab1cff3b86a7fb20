"""The `verl.plugins` entry point: upstream imports this module in every process (driver, Ray workers, vLLM workers).

It stays light: the platform, and the patches that are needed before verl's own modules are imported. The agent
loop, the dataset, the sampler and the CPU engine are named in the config and imported where they are used. Upstream
hides a failed import of a plugin, so `main_ppo` calls `upstream.check_plugin_loaded` before anything starts.
"""


def register() -> None:
    """Tell the runs of one machine apart, register the CPU platform and, if it is in use, apply its patches."""
    from verl.plugin.platform.platform_manager import PlatformRegistry, get_platform

    from verl_search.platform.cpu import PlatformCPU, is_for_this_process
    from verl_search.platform.upstream import alias_vllm_distribution, name_gloo_once, tell_runs_apart

    tell_runs_apart()
    if not is_for_this_process():
        return
    PlatformRegistry.register(platform=PlatformCPU.device_name)(PlatformCPU)
    if get_platform().device_name == PlatformCPU.device_name:
        alias_vllm_distribution()
        name_gloo_once()


register()
