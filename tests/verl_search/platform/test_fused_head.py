"""Which parts of a model FSDP2 gathers by themselves; that an update is the padded one: tests/gpu/test_stack.py."""

import inspect

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig
from verl.utils import fsdp_utils

from verl_search.platform.upstream import keep_fused_head_in_root_unit

LAYERS = ["LlamaDecoderLayer"]
SIZES = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def units(*, tied: bool, fused: bool) -> list[str]:
    """The names of the modules that verl makes a unit of each."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, tie_word_embeddings=tied))
    if fused:
        model._verl_fused_kernels_backend = "torch"  # as verl marks a model whose forward it replaces
    found = fsdp_utils._select_fsdp2_wrap_targets(model, LAYERS)
    return [name for name, module in model.named_modules() if any(module is one for one in found)]


def test_a_fused_last_layer_is_left_to_the_root_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = ["model.layers.0", "model.layers.1"]
    own = ["model.embed_tokens", *layers, "lm_head"]
    upstreams = inspect.unwrap(fsdp_utils._select_fsdp2_wrap_targets)  # another test may have imported the patch
    monkeypatch.setattr(fsdp_utils, "_select_fsdp2_wrap_targets", upstreams)
    assert units(tied=False, fused=True) == own  # upstream's
    keep_fused_head_in_root_unit()
    assert units(tied=False, fused=True) == ["model.embed_tokens", *layers]
    assert units(tied=False, fused=False) == own
    assert units(tied=True, fused=True) == layers
