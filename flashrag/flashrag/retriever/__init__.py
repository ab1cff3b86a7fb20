"""Retrieval: load a checked retriever (dense, BM25, hybrid, remote, reranked) from FlashRAG's configuration keys.

Light to import: torch, faiss and bm25s are loaded only once the files have been found and checked.
Does not cover: asking a retrieval server from an event loop (the client of the light core does).
"""

import os

from flashrag.document import Hit
from flashrag.retriever.base import Retriever
from flashrag.retriever.loading import Assets, check_assets, load_retriever, load_retriever_from
from flashrag.retriever.settings import RetrieverSettings

# What torch, faiss and the tokenizers read when they are imported, later.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # an OpenMP thread with nothing to do leaves its core to others
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its own threads fight with ours and with faiss's
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
FORWARD_THREADS_VARIABLE = "RESEARCH_FORWARD_THREADS"  # forward passes at a time on the CPU; default: torch's threads

__all__ = [
    "Assets",
    "Hit",
    "Retriever",
    "RetrieverSettings",
    "check_assets",
    "load_retriever",
    "load_retriever_from",
]
