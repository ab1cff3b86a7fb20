"""Retrieval: load a checked retriever (dense, BM25, hybrid, remote, reranked) from FlashRAG's configuration keys.

Light to import: torch, faiss and bm25s are loaded only once the files have been found and checked.
Does not cover: asking a retrieval server from an event loop (the client of the light core does).
"""

from flashrag.document import Hit
from flashrag.retriever.base import PassageCount, Retriever
from flashrag.retriever.encoder_folder import resolve_model_folder
from flashrag.retriever.index_card import read_card
from flashrag.retriever.loading import (
    PROCESS_VARIABLES,
    Assets,
    check_assets,
    is_sharded,
    load_retriever,
    load_retriever_from,
    prepare_process,
)
from flashrag.retriever.settings import RetrieverSettings

__all__ = [
    "PROCESS_VARIABLES",
    "Assets",
    "Hit",
    "PassageCount",
    "Retriever",
    "RetrieverSettings",
    "check_assets",
    "is_sharded",
    "load_retriever",
    "load_retriever_from",
    "prepare_process",
    "read_card",
    "resolve_model_folder",
]
