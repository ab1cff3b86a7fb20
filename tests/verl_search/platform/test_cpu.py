"""The CPU platform's own calls; that verl finds and uses it is in tests/verl_search/test_plugin.py."""

import subprocess
import sys

import pytest

# Blocks of less than the 128 KiB from which glibc takes each from the system by itself; every tenth stays.
FREE_WITH_GAPS = """
import psutil
from verl_search.platform.cpu import PlatformCPU
blocks = [bytearray(100_000) for _ in range(2000)]
kept = blocks[::10]
del blocks
in_use = lambda: psutil.Process().memory_info().rss
before = in_use()
{empty}
print(before - in_use())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of other systems decides for itself")
@pytest.mark.parametrize("empty", ["PlatformCPU.empty_cache()", "PlatformCPU.device_module.empty_cache()"])
def test_freed_memory_goes_back_to_the_system(empty: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREE_WITH_GAPS.format(empty=empty)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 50 * 2**20
