"""A critic's worker gets its config by pickle, and must be able to make its engine and load its model."""

import pickle

import pytest
import torch
from transformers import AutoConfig
from verl.utils import model as verl_model
from verl.workers.engine.base import EngineRegistry

from tests.docs.pages import ROOT
from verl_search.platform.critic import CriticEngineConfig

BASE_MODEL = ROOT / "training" / "demo" / "base_model"


def test_a_config_that_arrives_brings_the_engine_and_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verl_model, "load_valuehead_model", None)
    sent = CriticEngineConfig(dtype="float32", use_torch_compile=False)
    assert verl_model.load_valuehead_model is None, "the process that sends it makes no engine"
    arrived = pickle.loads(pickle.dumps(sent))
    assert arrived == sent
    engine = EngineRegistry.get_engine_cls("value_model", "fsdp2")
    assert engine.__name__ == "CPUEngineWithValueHead"
    config = AutoConfig.from_pretrained(BASE_MODEL, attn_implementation="sdpa", num_labels=1)
    loaded = verl_model.load_valuehead_model(str(BASE_MODEL), torch.float32, config, trust_remote_code=False)
    assert loaded.config._attn_implementation == "sdpa"
    assert loaded(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 1)  # a value for each token
