"""Tiny real transformers, randomly initialised and saved as Hugging Face saves them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tiny_bert() -> Callable[..., Path]:
    """`tiny_bert(folder, model_class, …)` saves a one-layer BERT that reads letters there; gives the folder."""
    import torch
    from transformers import BertConfig, BertTokenizer

    def save(folder: Path, model_class: Any, num_labels: int = 1, **options: Any) -> Path:
        letters = "abcdefghijklmnopqrstuvwxyz"
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        config = BertConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            initializer_range=0.5,  # outputs that differ from one text to the next
            num_labels=num_labels,
        )
        torch.manual_seed(0)
        model_class(config, **options).save_pretrained(folder)
        BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, every corpus is too large to be read whole, and its first two lines are read."""

    def set_limits() -> None:
        monkeypatch.setattr("flashrag.retriever.preflight.corpus.READ_BYTES", 1)
        monkeypatch.setattr("flashrag.retriever.preflight.corpus.FIRST_LINES", 2)

    return set_limits
