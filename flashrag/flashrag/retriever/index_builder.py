"""Build an index: `python -m flashrag.retriever.index_builder --retrieval_method e5 --model_path … --corpus_path … …`

Writes `<method>_<faiss_type>.index` with its card (dense) or the folder `bm25`, and the memory-mapped corpus beside it.
Files appear whole or not at all: an error or Ctrl-C leaves what stood there before.
Does not cover: building on several machines.
"""

import sys
from collections.abc import Sequence

from flashrag.corpus import open_corpus
from flashrag.errors import UserError, exit_on_user_error
from flashrag.retriever.build.bm25_index import build_bm25
from flashrag.retriever.build.dense_index import build_dense
from flashrag.retriever.build.options import BuildOptions, check_options, parse_args
from flashrag.retriever.encoder_folder import resolve_model_folder


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_args(argv)
    check_options(options)
    try:
        count = build(options)
    except OSError as error:
        reason = f"--save_dir {options.save_dir}: the index cannot be written there ({error})"
        raise UserError(f"{reason}{_kept(options)}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"no index was written{_kept(options)}") from None
    print(f"index: {options.target} ({count} passages)")
    return 0


def build(options: BuildOptions) -> int:
    """Build what the options ask for; gives the number of passages."""
    folder = resolve_model_folder(options.model_path, "--model_path") if options.model_path is not None else None
    options.save_dir.mkdir(parents=True, exist_ok=True)
    corpus = open_corpus(options.corpus_path, options.save_dir)
    print(f"corpus: {len(corpus)} passages in {options.corpus_path}", file=sys.stderr)
    if folder is None:
        build_bm25(options, corpus)
    else:
        build_dense(options, corpus, folder)
    return len(corpus)


def _kept(options: BuildOptions) -> str:
    if options.is_bm25 or not any(options.partial_embeddings.glob("*.npy")):
        return ""
    return f"; finished parts are kept in {options.partial_embeddings}: the same command goes on from there"


if __name__ == "__main__":
    sys.exit(main())
