"""What a critic needs beside verl's own engine: its attention, and on a machine without an accelerator our engine.

verl makes the critic's worker without its model's `external_lib`. Of the critic's config the worker gets this class.
"""

from dataclasses import dataclass
from typing import Any

from verl.plugin.platform.platform_manager import get_platform
from verl.workers.config import FSDPEngineConfig

from verl_search.platform.cpu import PlatformCPU
from verl_search.platform.upstream import load_critics_with_their_attention


@dataclass
class CriticEngineConfig(FSDPEngineConfig):
    """verl's settings of an FSDP engine; where they arrive from another process, an engine can be made of them."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        load_critics_with_their_attention()
        if get_platform().device_name == PlatformCPU.device_name:
            import verl_search.platform.engine  # noqa: F401  # registers the engines
