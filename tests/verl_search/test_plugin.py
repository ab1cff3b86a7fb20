"""The plugin is loaded by verl itself, and its absence is reported as exactly that."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from verl_search.platform.upstream import PLUGIN_MODULE, PluginNotLoaded, check_plugin_loaded


def test_importing_verl_loads_the_plugin_and_registers_the_cpu_platform() -> None:
    check_plugin_loaded()
    from verl.plugin.platform.platform_manager import PlatformRegistry

    assert "cpu" in PlatformRegistry.registered_names()


def test_a_plugin_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = importlib.metadata.EntryPoints([])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: nothing)
    monkeypatch.delitem(sys.modules, PLUGIN_MODULE, raising=False)
    with pytest.raises(PluginNotLoaded, match="pip install -e verl"):
        check_plugin_loaded()


@pytest.mark.slow
def test_a_plugin_that_verl_was_told_to_ignore_is_named() -> None:
    code = "from verl_search.platform.upstream import check_plugin_loaded; check_plugin_loaded()"
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "VERL_USE_EXTERNAL_PLUGINS='none' must be unset or name it" in done.stderr
