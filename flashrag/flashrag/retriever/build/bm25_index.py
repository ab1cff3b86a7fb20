"""Build a bm25 index: the folder that bm25s writes, with its card.

Passages are read in a stream, but bm25s counts in memory: the word numbers of the whole corpus, then the score matrix
(figures in docs/indexes.md). Nothing is resumed: a build that was interrupted begins again.
"""

import sys

from flashrag.corpus import Corpus
from flashrag.errors import UserError
from flashrag.retriever.build.options import BuildOptions
from flashrag.retriever.index_card import IndexCard, card_path, library_versions, path_bytes
from flashrag.retriever.settings import BM25
from flashrag.system.files import staged

PASSAGES_PER_READ = 1024


def build_bm25(options: BuildOptions, corpus: Corpus) -> None:
    """Count the words of every passage and write the folder at `options.target`."""
    import bm25s
    from tqdm import tqdm

    from flashrag.retriever.bm25 import SCORING, TOKENIZER_CARD, Tokenizer

    starts = range(0, len(corpus), PASSAGES_PER_READ)
    texts = (text for start in starts for text in corpus.contents(start, start + PASSAGES_PER_READ))
    bar = tqdm(texts, total=len(corpus), unit=" passages", desc="tokenize")
    words = Tokenizer().vocabulary(bar)
    if not words.vocab:
        raise UserError(f"--corpus_path {options.corpus_path}: no passage holds an indexable word; use a dense method")
    index = bm25s.BM25(k1=options.bm25_k1, b=options.bm25_b, method=SCORING)
    index.index(words, show_progress=sys.stderr.isatty())
    with staged(options.target) as new_folder:
        index.save(new_folder, show_progress=False)
        card = IndexCard(
            retrieval_method=BM25,
            count=len(corpus),
            corpus_sha256=corpus.sha256,
            corpus=str(options.corpus_path),
            bm25={"tokenizer": TOKENIZER_CARD, "scoring": SCORING, "k1": options.bm25_k1, "b": options.bm25_b},
            index_bytes=path_bytes(new_folder),
            versions=library_versions(("bm25s", "PyStemmer")),
        )
        card.write(card_path(new_folder, BM25))
