"""The CPU platform's own calls; that verl finds and uses it is in tests/verl_search/test_plugin.py."""

import subprocess
import sys

import pytest
from verl.plugin.platform.platform_manager import PlatformRegistry

from verl_search.preflight.memory import CPU_CACHE_BYTES

# Blocks of less than the 128 KiB from which glibc takes each from the system by itself; every tenth stays.
FREE_WITH_GAPS = """
import psutil
from verl.plugin.platform.platform_manager import PlatformRegistry
platform = PlatformRegistry.get("cpu")()
blocks = [bytearray(100_000) for _ in range(2000)]
kept = blocks[::10]
del blocks
in_use = lambda: psutil.Process().memory_info().rss
before = in_use()
{empty}
print(before - in_use())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of other systems decides for itself")
@pytest.mark.parametrize("empty", ["platform.empty_cache()", "platform.device_module.empty_cache()"])
def test_freed_memory_goes_back_to_the_system(empty: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREE_WITH_GAPS.format(empty=empty)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 50 * 2**20


def test_the_checks_know_the_engine_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    variables = PlatformRegistry.get("cpu")().rollout_env_vars()
    assert int(variables["VLLM_CPU_KVCACHE_SPACE"]) * 2**30 == CPU_CACHE_BYTES
