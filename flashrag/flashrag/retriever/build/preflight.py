"""What can be wrong with a build of an index, found before hours of encoding; and the plan of the build.

Sizes on disk and in memory are estimated from the number of passages, the encoder's dimension and the index's type.
Does not cover: vectors of a given file, which are compared with the encoder's own when it is loaded (dense_index.py).
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flashrag.corpus import Corpus
from flashrag.errors import UserError
from flashrag.preflight import (
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    check_readable,
    checked_command,
    error,
    fact,
    free_bytes,
    gathered,
    gib,
    note,
    output_folder,
    warning,
)
from flashrag.retriever.build.dense_index import LIBRARIES, kept_vectors, new_manifest
from flashrag.retriever.build.embeddings import read_embeddings, read_manifest, refuse_other_vectors
from flashrag.retriever.build.faiss_types import FaissType, IndexPlan, index_bytes, number_of_cells, plan_index
from flashrag.retriever.build.options import BuildOptions, contradictions
from flashrag.retriever.encoder_folder import (
    check_dimension,
    embedding_dimension,
    most_tokens,
    pooling_method,
    resolve_model_folder,
)
from flashrag.retriever.faiss_index import check_gpus, is_large, read_index
from flashrag.retriever.index_card import card_path, find_index
from flashrag.retriever.preflight import (
    LIBRARY_BYTES,
    UnreadCorpus,
    cache_bytes,
    describe,
    describe_encoder,
    look_at_corpus,
    unread,
)
from flashrag.system.files import locked
from flashrag.system.machine import count_gpus, versions_in_words

if TYPE_CHECKING:
    from flashrag.generator import ModelFacts

BUILDER = "python -m flashrag.retriever.index_builder"
FLOAT32_BYTES = 4
# Of a bm25 index, measured on Wikipedia (docs/indexes.md): its size by the corpus's, and memory for a passage.
BM25_SHARE_OF_CORPUS = 0.75
BM25_PASSAGE_BYTES = 3900


class BuildFacts(MachineFacts):
    """What the builder's flags ask for, and the machine. The encoder's facts are None of bm25."""

    def __init__(self, options: BuildOptions) -> None:
        self.options = options

    @fact
    def corpus(self) -> Corpus:
        return look_at_corpus("corpus_path", self.options.corpus_path)

    @fact
    def model_folder(self) -> Path | None:
        value = None if self.options.is_bm25 else self.options.model_path
        return None if value is None else resolve_model_folder(value, "--model_path")

    @fact
    def encoder(self) -> "ModelFacts | None":
        from flashrag.generator import read_model_facts  # here: the clients of servers come with it

        return None if self.model_folder is None else read_model_facts(self.model_folder, "--model_path")

    @fact
    def dimension(self) -> int | None:
        folder, options = self.model_folder, self.options
        if folder is None:
            return None
        return embedding_dimension(folder, pooling_method(folder, options.retrieval_method, options.pooling_method))

    @fact
    def plan(self) -> IndexPlan | None:
        """The faiss index; None of bm25, and where the encoder's folder does not tell its dimension."""
        count, dimension = len(self.corpus), self.dimension
        return plan_index(self.options.faiss_type, dimension, count) if dimension else None

    @fact
    def index_bytes(self) -> int:
        if self.options.is_bm25:
            return round(BM25_SHARE_OF_CORPUS * self.corpus.path.stat().st_size)
        return index_bytes(self.plan, len(self.corpus)) if self.plan else 0

    @fact
    def vector_bytes(self) -> int:
        """All vectors on disk while the index is built; 0 where they are given."""
        if self.dimension is None or self.options.embedding_path is not None:
            return 0
        item = 2 if self.options.embedding_dtype == "float16" else FLOAT32_BYTES
        return len(self.corpus) * self.dimension * item

    @fact
    def encoded_bytes(self) -> int:
        """The parts of vectors that an interrupted run has left."""
        return sum(path.stat().st_size for path in self.options.partial_embeddings.glob("*.npy"))

    @fact
    def disk_bytes(self) -> int:
        """What has still to be written. A former index stays until the new one is whole."""
        vectors = max(0, self.vector_bytes - self.encoded_bytes)
        return self.index_bytes + vectors + cache_bytes(self.corpus, self.options.save_dir)

    @fact
    def memory_bytes(self) -> int:
        if self.options.is_bm25:
            return BM25_PASSAGE_BYTES * len(self.corpus)
        in_memory = 0 if self.plan and self.plan.factory == FaissType.FLAT else self.index_bytes
        return in_memory + (self.encoder.weight_bytes if self.encoder else 0) + LIBRARY_BYTES

    @fact
    def gpus(self) -> int:
        return count_gpus()


def flags(facts: BuildFacts) -> Iterator[Finding]:
    yield from map(error, contradictions(facts.options))


def corpus(facts: BuildFacts) -> Iterator[Finding]:
    yield from unread("corpus_path", facts.corpus, "before anything is encoded")


def index_type(facts: BuildFacts) -> Iterator[Finding]:
    if facts.plan is not None and facts.plan.note:
        yield note(f"--faiss_type {facts.plan.faiss_type}: {facts.plan.note}")


def length(facts: BuildFacts) -> Iterator[Finding]:
    given, folder = facts.options.max_length, facts.model_folder
    if folder is not None and given > (most := most_tokens(folder) or given):
        yield warning(f"--max_length {given}: the encoder takes {most} tokens, and the rest of a passage is cut off")


def folder(facts: BuildFacts) -> Iterator[Finding]:
    options = facts.options
    if options.target.exists() and options.target.is_dir() is not options.is_bm25:
        kind = "a folder" if options.target.is_dir() else "a file"
        yield error(f"--save_dir {options.save_dir}: {options.target} is {kind} in the index's place; remove it")
    yield from output_folder(
        "--save_dir", options.save_dir, lambda: facts.disk_bytes, "index, vectors and the corpus's copy"
    )


def memory(facts: BuildFacts) -> Iterator[Finding]:
    """No error: the estimate is rough, and a machine may swap."""
    needed, there = facts.memory_bytes, facts.machine.memory_bytes
    if needed > there:
        smaller = "give fewer passages, or a dense index" if facts.options.is_bm25 else "give another --faiss_type"
        yield warning(
            f"the build needs about {gib(needed)} of memory, and this machine has {gib(there)}; it may be ended before "
            f"the index is written: {smaller}, or take a larger machine"
        )


def gpus(facts: BuildFacts) -> Iterator[Finding]:
    if facts.options.use_fp16 and not facts.gpus:
        yield note("--use_fp16 has no effect: this machine shows no GPU")
    if facts.options.faiss_gpu and not facts.options.is_bm25:
        check_gpus("--faiss_gpu")
        if facts.plan is not None and not number_of_cells(facts.plan):
            yield note(f"--faiss_gpu has no effect: {facts.plan.faiss_type} has no cells to train")


def given_vectors(facts: BuildFacts) -> None:
    path, model = facts.options.embedding_path, facts.model_folder
    if path is None or model is None:
        return
    if not path.exists():
        raise UserError(f"--embedding_path: nothing at {path}; give a folder of --save_embedding, or a vector file")
    if path.is_file():
        check_readable("--embedding_path", path)
    if isinstance(facts.corpus, UnreadCorpus):
        return
    if path.is_dir():
        kept_vectors(path, new_manifest(facts.options, facts.corpus, model))
    elif facts.dimension is not None:
        read_embeddings(path, len(facts.corpus), facts.dimension)


def given_index(facts: BuildFacts) -> None:
    """What is known of an index without its encoder's vectors; they are compared when the card is written."""
    path, method = facts.options.target, facts.options.retrieval_method
    find_index(path, method)
    if (card := card_path(path, method)).exists():
        raise UserError(f"--write_card: the index has a card already, {card}; remove it to write another")
    index = read_index(path, mmap=is_large(path), l2=True)
    if not isinstance(facts.corpus, UnreadCorpus):
        facts.corpus.check_index_of(index.ntotal)
    check_dimension(facts.dimension or index.d, index.d)


def resumed(facts: BuildFacts) -> Iterator[Finding]:
    """An interrupted run goes on only with the same settings, and once."""
    path, model = facts.options.partial_embeddings, facts.model_folder
    if model is None or not path.is_dir():
        return
    try:
        with locked(path):
            found = read_manifest(path) if facts.encoded_bytes else None
    except BlockingIOError:
        raise UserError(f"{path}: another build is at work there; wait for it, or give another --save_dir") from None
    if found is not None:
        unknown = ("corpus_sha256", "count") if isinstance(facts.corpus, UnreadCorpus) else ()
        wanted = new_manifest(facts.options, facts.corpus, model)
        refuse_other_vectors(path, found, wanted, f"or remove {path} to encode again", unknown)
        yield note(f"{path} holds {gib(facts.encoded_bytes)} of vectors of an interrupted run, which goes on")


BUILD_RULES = {
    "build.flags": flags,
    "build.encoder": gathered("encoder"),
    "build.corpus": corpus,
    "build.type": index_type,
    "build.length": length,
    "build.folder": folder,
    "build.memory": memory,
    "build.gpus": gpus,
    "build.vectors": given_vectors,
    "build.resume": resumed,
    **MACHINE_RULES,
}
# Of --write_card, which needs neither memory nor disk space for an index.
CARD_RULES = {name: BUILD_RULES[name] for name in ("build.flags", "build.encoder", "build.corpus", "build.length")}
CARD_RULES["build.index"] = given_index


def _encoder(facts: BuildFacts) -> str:
    if facts.encoder is None or facts.model_folder is None:
        return "none"
    return describe_encoder(facts.encoder, facts.model_folder)


def _type(facts: BuildFacts) -> str:
    if facts.options.is_bm25:
        return f"bm25, k1 {facts.options.bm25_k1}, b {facts.options.bm25_b}"
    return f"{facts.options.faiss_type} ({facts.plan.factory if facts.plan else 'dimension unknown'})"


def _vectors(facts: BuildFacts) -> str:
    if facts.options.is_bm25:
        return "none"
    if facts.options.embedding_path is not None:
        return f"those of {facts.options.embedding_path}"
    parts = -(-len(facts.corpus) // facts.options.part_size)
    place = facts.options.saved_embeddings if facts.options.save_embedding else facts.options.partial_embeddings
    count = f"{parts} part{'s'[: parts > 1]}"
    return f"{facts.dimension or 'unknown'} dimensions, {count}, {gib(facts.vector_bytes)} in {place}"


PLAN: Plan[BuildFacts] = {
    "index": {
        "command": lambda _: checked_command(BUILDER, sys.argv[1:]),
        "passages": lambda facts: describe(facts.corpus),
        "encoder": _encoder,
        "type": _type,
        "vectors": _vectors,
        "index": lambda facts: f"about {gib(facts.index_bytes)} in {facts.options.target.absolute()}",
    },
    "machine": {
        "disk": lambda facts: (
            f"about {gib(facts.disk_bytes)} of {gib(free_bytes(facts.options.save_dir))} that are free"
        ),
        "memory": lambda facts: f"about {gib(facts.memory_bytes)} of {gib(facts.machine.memory_bytes)}",
        "processors": lambda facts: f"{facts.machine.cores} cores, {facts.gpus} GPUs",
        "libraries": lambda _: versions_in_words((*LIBRARIES, "bm25s")),
    },
}
