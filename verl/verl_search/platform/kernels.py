"""How a model computes on GPUs: its attention, and the kernels of its last layer, with and without flash-attn.

verl's defaults need flash-attn, of which PyPI has no wheel. Without it verl would refuse to load the model, and with
the attention sdpa alone it would compute log-probabilities row by row and keep all logits in float32; its fused kernels
do neither. So a null in the config stands for what works in this environment.
"""

import importlib
import importlib.util
from typing import NamedTuple

from omegaconf import DictConfig

PACKAGE = "flash_attn"
FLASH, SDPA = "flash_attention_2", "sdpa"


class Kernels(NamedTuple):
    attention: str
    fused: bool


def chosen_kernels(model: DictConfig, flash_attn: bool) -> Kernels:
    """Those of a `model` group of the config; `flash_attn` says whether the package works here."""
    attention, fused = model.override_config.attn_implementation, model.use_fused_kernels
    return Kernels(attention or (FLASH if flash_attn else SDPA), not flash_attn if fused is None else fused)


def complete_kernels(model: DictConfig) -> None:
    """Put them in the place of a null."""
    model.override_config.attn_implementation, model.use_fused_kernels = chosen_kernels(model, flash_attn_works())


def flash_attn_is_installed() -> bool:
    """Without importing it, which takes seconds."""
    return importlib.util.find_spec(PACKAGE) is not None


def flash_attn_works() -> bool:
    """A build for another torch is there and cannot be imported."""
    try:
        importlib.import_module(PACKAGE)
    except ImportError:
        return False
    return True
