"""What can be wrong with the settings and files of a retriever, found without torch, and without writing anything.

    corpus.py     a look at a corpus
    part.py       one retriever over local files: encoder, index and corpus, and whether they belong together
    retriever.py  the retriever that settings describe: its parts, reranker, GPUs and memory; its part of a plan

Does not cover: building an index (../build/preflight.py).
"""

from flashrag.retriever.preflight.corpus import UnreadCorpus, cache_bytes, describe, look_at_corpus, unread
from flashrag.retriever.preflight.retriever import (
    LIBRARY_BYTES,
    RETRIEVER_PLAN,
    RETRIEVER_RULES,
    RetrieverFacts,
    describe_encoder,
)

__all__ = [
    "LIBRARY_BYTES",
    "RETRIEVER_PLAN",
    "RETRIEVER_RULES",
    "RetrieverFacts",
    "UnreadCorpus",
    "cache_bytes",
    "describe",
    "describe_encoder",
    "look_at_corpus",
    "unread",
]
