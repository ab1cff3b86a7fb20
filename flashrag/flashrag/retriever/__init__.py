"""Retrieval: load a checked retriever (dense, BM25, hybrid, remote, reranked) from FlashRAG's configuration keys.

    settings.py       the configuration's keys
    preflight/        what is wrong with keys and files, all at once
    loading.py        from the keys to checked files, and to a retriever
    base.py           the interface of every retriever
    dense.py bm25.py  over a local index; hybrid.py fuses several, reranker.py scores again, remote.py asks a server
    encoder.py        a sentence encoder; encoder_folder.py: its files
    model_runner.py   such a model, run from any number of threads
    faiss_index.py    an index's file; index_card.py: how it was built; index_check.py: whether one without a card fits
    index_builder.py  the command that builds an index; build/: its parts
    index_shards.py   the command that splits an index, and its shards

Light to import: torch, faiss and bm25s are loaded only once the files have been found and checked.
Does not cover: asking a retrieval server from an event loop (flashrag.client).
"""

from flashrag.document import Hit
from flashrag.retriever.base import Retriever
from flashrag.retriever.encoder_folder import resolve_model_folder
from flashrag.retriever.faiss_index import GPU_MOST, read_index, set_search_depth
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
from flashrag.retriever.preflight import RETRIEVER_PLAN, RETRIEVER_RULES, RetrieverFacts
from flashrag.retriever.settings import RetrieverSettings

__all__ = [
    "GPU_MOST",
    "PROCESS_VARIABLES",
    "RETRIEVER_PLAN",
    "RETRIEVER_RULES",
    "Assets",
    "Hit",
    "Retriever",
    "RetrieverFacts",
    "RetrieverSettings",
    "check_assets",
    "is_sharded",
    "load_retriever",
    "load_retriever_from",
    "prepare_process",
    "read_card",
    "read_index",
    "resolve_model_folder",
    "set_search_depth",
]
