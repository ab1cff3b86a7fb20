"""BM25 retrieval over bm25s. Importing this module loads numpy, bm25s and the stemmer; no torch.

Tokenizer: lower case; words of two letters or more (Unicode `\\b\\w\\w+\\b`); no English stop words (bm25s's); then
Snowball's English stemmer. Scores: Lucene's variant of BM25, with the k1 and b of the index (the builder's defaults are
Anserini's for passages). A passage that shares no word with the query is never returned, so a list may be shorter
than asked for.
"""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import bm25s
import numpy as np
import Stemmer

from flashrag.corpus import Corpus
from flashrag.document import Hit
from flashrag.errors import UserError
from flashrag.retriever.base import Retriever
from flashrag.retriever.index_card import IndexCard

TOKEN_PATTERN = r"(?u)\b\w\w+\b"
STOP_WORDS = "english"
STEMMER = "english"
SCORING = "lucene"
TOKENIZER_CARD = {"lower": True, "pattern": TOKEN_PATTERN, "stop_words": f"bm25s {STOP_WORDS}", "stemmer": STEMMER}


class Tokenizer:
    """Text to stemmed words, the same for passages and queries."""

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer(STEMMER)
        self._lock = threading.Lock()  # a Snowball stemmer must not be used by two threads at once

    def tokenize(self, texts: Iterable[str], return_ids: bool) -> Any:
        """The words of each text; with `return_ids` bm25s's word numbers of each text and the vocabulary."""
        options: Any = {"token_pattern": TOKEN_PATTERN, "stopwords": STOP_WORDS, "stemmer": self._stemmer}
        with self._lock:
            return bm25s.tokenize(cast(Any, texts), return_ids=return_ids, show_progress=False, **options)


class BM25Retriever(Retriever):
    def __init__(self, index: bm25s.BM25, corpus: Corpus, topk: int) -> None:
        corpus.check_index_of(index.scores["num_docs"])
        self.method = "bm25"
        self.corpus = self._corpus = corpus
        self.topk = topk
        self._index = index
        self._tokenizer = Tokenizer()

    def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        return (
            [self._rank_one(words, num) for words in self._tokenizer.tokenize(queries, return_ids=False)]
            if queries
            else []
        )

    def _rank_one(self, words: list[str], num: int) -> list[Hit]:
        word_numbers = self._index.get_tokens_ids(words)
        if not word_numbers:
            return []
        scores = self._index.get_scores_from_ids(word_numbers)
        rows = best_rows(scores, num)
        return self._corpus.hits(rows, scores[rows])


def best_rows(scores: np.ndarray, num: int) -> list[int]:
    """Rows of the `num` highest scores above zero, best first; equal scores in the order of the corpus.

    >>> best_rows(np.array([0.0, 2.0, 1.0, 2.0]), 3)
    [1, 3, 2]
    """
    rows = np.flatnonzero(scores > 0)
    if len(rows) > num:
        least = np.partition(scores[rows], -num)[-num]
        rows = rows[scores[rows] >= least]
    return [int(row) for row in rows[np.argsort(-scores[rows], kind="stable")][:num]]


def read_index(path: Path, card: IndexCard) -> bm25s.BM25:
    """The memory-mapped index in the folder `path`; raises UserError if it is damaged or has another tokenizer."""
    built_with = (card.bm25 or {}).get("tokenizer")
    if built_with != TOKENIZER_CARD:
        raise UserError(f"index_path: {path} was built with another tokenizer ({built_with}); build the index again")
    try:
        return bm25s.BM25.load(path, mmap=True, load_corpus=False, allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"index_path: {path} is not a readable bm25 index ({error}); build the index again") from error
