"""FlashRAG's public factory names; what they make lives in the modules they import on call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashrag.config import Config
    from flashrag.retriever import Retriever


def get_retriever(config: Config) -> Retriever:
    """The retriever that `retrieval_method` names (see flashrag.retriever), loaded and checked."""
    from flashrag.retriever import load_retriever

    return load_retriever(config)
