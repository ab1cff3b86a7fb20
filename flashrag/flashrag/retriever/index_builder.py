"""Build an index: `python -m flashrag.retriever.index_builder --retrieval_method e5 --model_path … --corpus_path … …`

Writes `<method>_<faiss_type>.index` with its card (dense) or the folder `bm25`, and the memory-mapped corpus beside it.
With `--write_card` it builds nothing: it checks an index that was built elsewhere, and writes its card.
Files appear whole or not at all: an error or Ctrl-C leaves earlier ones in place. `--check` prints the plan and what is
wrong with it (build/preflight.py), and writes nothing.
Does not cover: building on several machines.
"""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from flashrag.corpus import Corpus, open_corpus
from flashrag.errors import UserError, exit_on_user_error
from flashrag.preflight import enforce, examine, show_check
from flashrag.retriever.build.dense_index import build_dense, write_card
from flashrag.retriever.build.options import BuildOptions, parse_args
from flashrag.retriever.build.preflight import BUILD_RULES, CARD_RULES, PLAN, BuildFacts
from flashrag.retriever.encoder_folder import resolve_model_folder
from flashrag.retriever.index_card import IndexCard, card_path, path_bytes
from flashrag.retriever.loading import prepare_process
from flashrag.retriever.settings import Kind
from flashrag.system.files import staged
from flashrag.system.machine import library_versions

PASSAGES_PER_READ = 1024  # of a bm25 build


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_args(argv)
    prepare_process()
    facts = BuildFacts(options)
    findings = examine(BUILD_RULES if options.write_card is None else CARD_RULES, facts)
    if options.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    try:
        count = build(options)
    except OSError as error:
        reason = f"--save_dir {options.target.parent}: the index cannot be written there ({error})"
        if options.write_card is not None:
            reason = f"--write_card {options.write_card}: the card cannot be written beside it ({error})"
        raise UserError(f"{reason}{_kept(options)}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"no index was written{_kept(options)}") from None
    print(f"index: {options.target} ({count} passages)")
    return 0


def build(options: BuildOptions) -> int:
    """Build the index that the options describe; returns the number of passages."""
    folder = resolve_model_folder(options.model_path, "--model_path") if options.model_path is not None else None
    options.target.parent.mkdir(parents=True, exist_ok=True)
    corpus = open_corpus(options.corpus_path, options.target.parent)
    print(f"corpus: {len(corpus)} passages in {options.corpus_path}", file=sys.stderr)
    if folder is None:
        build_bm25(options, corpus)
    elif options.write_card is not None:
        write_card(options, corpus, folder)
    else:
        build_dense(options, corpus, folder)
    return len(corpus)


def _kept(options: BuildOptions) -> str:
    if options.is_bm25 or options.write_card is not None or not any(options.partial_embeddings.glob("*.npy")):
        return ""
    return f"; finished parts are kept in {options.partial_embeddings}: the same command resumes from there"


def build_bm25(options: BuildOptions, corpus: Corpus) -> None:
    """Count the words of every passage and write the folder that bm25s makes, with its card, at `options.target`.

    Passages are read in a stream, but bm25s counts in memory: the word numbers of the whole corpus, then the score
    matrix (figures in docs/indexes.md). An interrupted build starts again from the beginning.
    """
    import bm25s

    from flashrag.retriever.bm25 import SCORING, TOKENIZER_CARD, Tokenizer

    starts = range(0, len(corpus), PASSAGES_PER_READ)
    texts = (text for start in starts for text in corpus.contents(start, start + PASSAGES_PER_READ))
    bar = tqdm(texts, total=len(corpus), unit=" passages", desc="tokenize")
    words = Tokenizer().tokenize(bar, return_ids=True)
    if not words.vocab:
        raise UserError(f"--corpus_path {options.corpus_path}: no passage holds an indexable word; use a dense method")
    index = bm25s.BM25(k1=options.bm25_k1, b=options.bm25_b, method=SCORING)
    index.index(words, show_progress=sys.stderr.isatty())
    with staged(options.target) as new_folder:
        index.save(new_folder, show_progress=False)
        card = IndexCard(
            retrieval_method=Kind.BM25,
            count=len(corpus),
            corpus_sha256=corpus.sha256,
            corpus=str(options.corpus_path),
            bm25={"tokenizer": TOKENIZER_CARD, "scoring": SCORING, "k1": options.bm25_k1, "b": options.bm25_b},
            index_bytes=path_bytes(new_folder),
            versions=library_versions(("bm25s", "PyStemmer")),
        )
        card.write(card_path(new_folder, Kind.BM25))


if __name__ == "__main__":
    sys.exit(main())
