"""Retrieval over a local index: load a checked retriever from FlashRAG's configuration keys.

Light to import: torch, faiss and bm25s are loaded only once the files have been found and checked.
Does not cover: asking a retrieval server over HTTP (the client of the light core does).
"""

from flashrag.document import Hit
from flashrag.retriever.base import Retriever
from flashrag.retriever.loading import Assets, check_assets, load_retriever, load_retriever_from
from flashrag.retriever.settings import RetrieverSettings

__all__ = [
    "Assets",
    "Hit",
    "Retriever",
    "RetrieverSettings",
    "check_assets",
    "load_retriever",
    "load_retriever_from",
]
