"""Build a dense index: encode the corpus part by part, then index the parts.

The parts are in `emb_<method>.partial` beside the index until it is written, so a run that was killed resumes at the
first missing part. `--save_embedding` keeps them as `emb_<method>`.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from flashrag.corpus import Corpus
from flashrag.errors import UserError
from flashrag.retriever.build.embeddings import (
    Embeddings,
    Manifest,
    PartFolder,
    open_parts,
    read_embeddings,
    read_manifest,
    refuse_other_vectors,
)
from flashrag.retriever.build.faiss_types import FaissType, IndexPlan, plan_index
from flashrag.retriever.build.options import BuildOptions
from flashrag.retriever.encoder_folder import family, model_sha256, pooling_method, spaced
from flashrag.retriever.index_card import IndexCard, card_path
from flashrag.system.files import staged
from flashrag.system.machine import library_versions

if TYPE_CHECKING:
    from flashrag.retriever.encoder import Encoder

# For each device. A chunk is sorted by length before it is cut into batches: less padding, the same vectors.
BATCHES_PER_CHUNK = 4
MIN_COSINE = 0.99  # of a given vector and our own for the same passage; allows for half precision
LIBRARIES = ("faiss-cpu", "faiss-gpu", "sentence-transformers", "torch", "transformers")


def new_manifest(options: BuildOptions, corpus: Corpus, model_folder: Path) -> Manifest:
    """The manifest of the vectors that the options ask for."""
    of_family = family(options.retrieval_method)
    return Manifest(
        corpus_sha256=corpus.sha256,
        count=len(corpus),
        model_sha256=model_sha256(model_folder),
        pooling=pooling_method(model_folder, options.retrieval_method, options.pooling_method),
        passage_instruction=of_family.passage if options.instruction is None else spaced(options.instruction),
        max_length=options.max_length,
        use_fp16=options.use_fp16,
        dtype=options.embedding_dtype,
        part_size=options.part_size,
    )


def build_dense(options: BuildOptions, corpus: Corpus, model_folder: Path) -> None:
    """Write the index and its card at `options.target`; raises UserError, and OSError where the disk is full."""
    manifest = new_manifest(options, corpus, model_folder)
    if options.embedding_path is not None:
        embeddings = _given_embeddings(options.embedding_path, options, manifest, corpus, model_folder)
        _install(options, manifest, embeddings, plan_index(options.faiss_type, embeddings.dimension, len(corpus)))
        return
    with open_parts(options.partial_embeddings, manifest) as parts:
        plan = _encode_missing(parts, options, corpus, model_folder)
        embeddings = parts.embeddings()
        _install(
            options, manifest, embeddings, plan or plan_index(options.faiss_type, embeddings.dimension, len(corpus))
        )
        if options.save_embedding:
            # A kill between the two leaves the new vectors where the next build resumes from.
            shutil.rmtree(options.saved_embeddings, ignore_errors=True)
            parts.path.rename(options.saved_embeddings)
        else:
            shutil.rmtree(parts.path)


def write_card(options: BuildOptions, corpus: Corpus, model_folder: Path) -> None:
    """Write the card of an index that was built elsewhere, once it fits corpus and encoder; raises UserError."""
    from flashrag.retriever.faiss_index import is_large, read_index
    from flashrag.retriever.index_check import Part, check_size, check_vectors

    path = card_path(options.target, options.retrieval_method)
    manifest = new_manifest(options, corpus, model_folder)
    index = read_index(options.target, mmap=is_large(options.target), l2=True)
    encoder = _encoder(options, manifest, model_folder)
    check_size(index, corpus, encoder)
    any_length = not family(options.retrieval_method).unit
    instruction, batch_size = manifest.passage_instruction, options.batch_size
    count = check_vectors([Part(index)], corpus, encoder, instruction, batch_size, any_length)
    if not count:
        raise UserError(
            f"--write_card: {options.target} is a faiss {type(index).__name__}, which cannot give its vectors back to "
            "be compared; build the index here"
        )
    kind = type(index).__name__
    faiss_type = str(FaissType.FLAT) if kind == "IndexFlatIP" else kind
    card = _card(options, manifest, options.target, dimension=index.d, faiss_type=faiss_type, compared_rows=count)
    with staged(path) as new_card:
        card.write(new_card)
    print(f"card: {path} ({count} vectors compared)", file=sys.stderr)


def _card(options: BuildOptions, manifest: Manifest, index_path: Path, **more: Any) -> IndexCard:
    return IndexCard(
        **manifest.model_dump(),  # the keys that a card has too
        retrieval_method=options.retrieval_method,
        corpus=str(options.corpus_path),
        model=options.model_path,
        query_instruction=family(options.retrieval_method).query,
        index_bytes=index_path.stat().st_size,
        **more,
    )


def _encode_missing(parts: PartFolder, options: BuildOptions, corpus: Corpus, model_folder: Path) -> IndexPlan | None:
    """Encode the parts that are not there yet. Returns the index's plan, or None if every part was there."""
    missing = parts.missing()
    todo = sum(len(parts.rows[number]) for number in missing)
    done = len(corpus) - todo
    if done:
        print(f"resume: {done} of {len(corpus)} passages are encoded already in {parts.path}", file=sys.stderr)
    if not missing:
        return None
    manifest = parts.manifest
    encoder = _encoder(options, manifest, model_folder)
    plan = plan_index(options.faiss_type, encoder.dimension, len(corpus))
    with tqdm(total=len(corpus), initial=done, unit=" passages", desc="encode", smoothing=0.05) as bar:
        for number in missing:
            blocks = _vectors(corpus, parts.rows[number], encoder, manifest, options.batch_size, bar)
            parts.write(number, encoder.dimension, blocks)
    return plan


def _encoder(options: BuildOptions, manifest: Manifest, model_folder: Path) -> "Encoder":
    from flashrag.retriever.encoder import Encoder

    return Encoder(
        model_folder,
        manifest.pooling,
        manifest.max_length,
        manifest.use_fp16,
        "--model_path",
        trust_remote_code=options.trust_remote_code,
    )


def _vectors(
    corpus: Corpus, rows: range, encoder: "Encoder", manifest: Manifest, batch_size: int, bar: tqdm
) -> Iterator[np.ndarray]:
    size = batch_size * BATCHES_PER_CHUNK * encoder.device_count
    for start in range(rows.start, rows.stop, size):
        texts = corpus.contents(start, min(start + size, rows.stop))
        vectors = encoder.encode(texts, manifest.passage_instruction, batch_size)
        if not np.isfinite(vectors).all():
            raise UserError(
                f"--model_path: the encoder gives vectors that are not finite for passages {start} to "
                f"{start + len(texts) - 1}; leave --use_fp16 out, or download the encoder again"
            )
        yield vectors
        bar.update(len(texts))


def kept_vectors(folder: Path, manifest: Manifest) -> Embeddings:
    """The vectors in a folder of `--save_embedding`; raises UserError unless they are those of the manifest."""
    found = read_manifest(folder)
    if found is None:
        raise UserError(f"--embedding_path: {folder} holds no manifest.json, so it is not a folder of --save_embedding")
    refuse_other_vectors(folder, found, manifest, "or leave --embedding_path out", ("dtype", "part_size", "use_fp16"))
    return PartFolder(folder, found).embeddings()


def _given_embeddings(
    path: Path, options: BuildOptions, manifest: Manifest, corpus: Corpus, model_folder: Path
) -> Embeddings:
    """The vectors at --embedding_path, checked against corpus and encoder."""
    if path.is_dir():
        return kept_vectors(path, manifest)
    encoder = _encoder(options, manifest, model_folder)
    embeddings = read_embeddings(path, len(corpus), encoder.dimension)
    _check_vectors(path, embeddings, corpus, encoder, manifest)
    return embeddings


def _check_vectors(path: Path, embeddings: Embeddings, corpus: Corpus, encoder: "Encoder", manifest: Manifest) -> None:
    """A vector file does not name its encoder: encode a few passages and compare."""
    rows = sorted({0, len(corpus) // 2, len(corpus) - 1})
    texts = [corpus[row].contents for row in rows]
    own_vectors = encoder.encode(texts, manifest.passage_instruction, len(texts))
    for row, given, own in zip(rows, embeddings.rows(rows), own_vectors, strict=True):
        if not (abs(float(given @ given) - 1) < 1 - MIN_COSINE and float(given @ own) > MIN_COSINE):
            raise UserError(
                f"--embedding_path: vector {row} of {path} (length {float(given @ given) ** 0.5:.3f}) differs from the "
                f"encoder's for passage {row}: their product is {float(given @ own):.3f}, expected 1; give unit "
                "vectors of this corpus, encoder, pooling and instruction"
            )


def _install(options: BuildOptions, manifest: Manifest, embeddings: Embeddings, plan: IndexPlan) -> None:
    """Put index and card in their place."""
    from flashrag.retriever.build.faiss_file import build_index

    with staged(options.target) as new_index:
        parameters = build_index(new_index, plan, embeddings, options.faiss_gpu)
        card = _card(
            options,
            manifest,
            new_index,
            dimension=embeddings.dimension,
            faiss_type=options.faiss_type,
            faiss_parameters=parameters,
            versions=library_versions(LIBRARIES),
        )
        with staged(card_path(options.target, options.retrieval_method)) as new_card:
            card.write(new_card)
            # Index and card cannot be renamed in one step: better no index for a moment than one with a wrong card.
            options.target.unlink(missing_ok=True)
