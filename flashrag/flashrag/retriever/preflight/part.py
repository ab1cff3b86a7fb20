"""One retriever over local files: its encoder, index and corpus, and whether they belong together."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flashrag.corpus import CACHE_FOLDER, Corpus
from flashrag.errors import UserError
from flashrag.preflight import (
    Finding,
    check_readable,
    error,
    fact,
    free_bytes,
    gathered,
    gib,
    is_writable,
    warning,
)
from flashrag.retriever.encoder_folder import (
    check_dimension,
    embedding_dimension,
    most_tokens,
    pooling_method,
    resolve_model_folder,
)
from flashrag.retriever.faiss_index import GPU_FLAT, check_on_gpus, is_large, read_index, set_search_depth
from flashrag.retriever.index_card import IndexCard, find_index, path_bytes, read_card
from flashrag.retriever.loading import check_assets
from flashrag.retriever.preflight.corpus import cache_bytes, look_at_corpus, unread
from flashrag.retriever.settings import Kind, RetrieverSettings

if TYPE_CHECKING:
    from flashrag.generator import ModelFacts


class Shape(NamedTuple):
    """An index: `kind` is faiss's class, `shards` or bm25; `dimension` is None where the index does not tell."""

    kind: str
    count: int
    dimension: int | None


class PartFacts:
    """`sharded` where the index is a folder of shards."""

    def __init__(self, settings: RetrieverSettings, sharded: bool = False) -> None:
        self.settings = settings
        self.sharded = sharded

    @fact
    def paths(self) -> tuple[Path, Path]:
        index_path, corpus_path = self.settings.index_path, self.settings.corpus_path
        assert index_path is not None and corpus_path is not None, "checked by RetrieverSettings"
        return index_path, corpus_path

    @fact
    def model_folder(self) -> Path | None:
        value = self.settings.retrieval_model_path
        return None if value is None else resolve_model_folder(value, "retrieval_model_path")

    @fact
    def encoder(self) -> "ModelFacts | None":
        from flashrag.generator import read_model_facts  # here: the clients of servers come with it

        return None if self.model_folder is None else read_model_facts(self.model_folder, "retrieval_model_path")

    @fact
    def card(self) -> IndexCard | None:
        path, method = self.paths[0], self.settings.retrieval_method
        if any(path.glob("shard_*.index.json")):
            raise UserError(
                f"index_path: {path} holds the shards of an index, which a Ray cluster serves (docs/cluster.md); give "
                "the index file"
            )
        find_index(path, method)
        if path.is_file():
            check_readable("index_path", path)
        return read_card(path, method)

    @fact
    def corpus(self) -> Corpus:
        card = None
        with suppress(UserError):  # which is told about the index
            card = self.shards[1] if self.sharded else self.card
        return look_at_corpus("corpus_path", self.paths[1], card)

    @fact
    def shards(self) -> tuple[int, IndexCard | None]:
        """The rows of all shards, and the card of the index that they were cut from."""
        from flashrag.retriever.index_shards import read_shards  # here: it is also run as a module

        first = read_shards(self.paths[0])[0]
        return first.total_rows, first.index_card

    @fact
    def index(self) -> Shape:
        """The index; a dense one is opened, without reading what is large."""
        if self.sharded:
            rows, card = self.shards
            return Shape("shards", rows, card.dimension if card else None)
        if self.settings.kind is Kind.BM25:
            assert self.card is not None, "find_index refuses a bm25 folder without its card"
            return Shape(Kind.BM25, self.card.count, None)
        import faiss

        path, _ = self.paths[0], self.card  # found, and as long as its card says
        index = read_index(path, mmap=is_large(path), l2=True)
        set_search_depth(index, self.settings.faiss_nprobe, self.settings.faiss_ef_search)
        if self.settings.faiss_gpu:
            check_on_gpus(index)
        return Shape(type(faiss.downcast_index(index)).__name__, index.ntotal, index.d)

    @fact
    def memory_bytes(self) -> int:
        """The index, unless it is left on the disk or on other machines, and the encoder."""
        loaded = self.settings.kind is Kind.DENSE and not self.settings.faiss_mmap and not self.sharded
        index = path_bytes(self.paths[0]) if loaded and self.index else 0
        return index + (self.encoder.weight_bytes if self.encoder else 0)

    @fact
    def gpu_bytes(self) -> int:
        """The index on GPUs, where Flat takes half of its file (float16)."""
        if not self.settings.faiss_gpu:
            return 0
        divisor = 2 if self.index.kind in GPU_FLAT else 1
        return path_bytes(self.paths[0]) // divisor


def _corpus(part: PartFacts) -> Iterator[Finding]:
    yield from unread("corpus_path", part.corpus, "when the retriever is loaded")


def _fit(part: PartFacts) -> None:
    """Index, encoder and corpus belong together, as `check_assets` finds."""
    corpus, shape, folder = part.corpus, part.index, part.model_folder
    check_assets(part.settings, shards=part.sharded, corpora={part.paths[1].absolute(): corpus})
    if corpus.sha256:
        corpus.check_index_of(shape.count)
    if folder is not None and shape.dimension is not None:
        pooling = pooling_method(folder, part.settings.retrieval_method, part.settings.retrieval_pooling_method)
        check_dimension(embedding_dimension(folder, pooling) or shape.dimension, shape.dimension)


def _length(part: PartFacts) -> Iterator[Finding]:
    given, folder = part.settings.retrieval_query_max_length, part.model_folder
    if folder is not None and given > (most := most_tokens(folder) or given):
        yield warning(
            f"retrieval_query_max_length is {given}, but the encoder takes {most} tokens: queries are cut there"
        )


def _cache(part: PartFacts) -> Iterator[Finding]:
    folder = part.paths[0].absolute().parent
    folder = folder if is_writable(folder / CACHE_FOLDER) else Path(tempfile.gettempdir())
    if (needed := cache_bytes(part.corpus, part.paths[0].absolute().parent)) > (free := free_bytes(folder)):
        yield error(f"corpus_path: its copy in {folder} needs {gib(needed)}, but {gib(free)} are free; free some")


PART_RULES = {
    "retriever.encoder": gathered("encoder"),
    "retriever.index": gathered("index"),
    "retriever.corpus": _corpus,
    "retriever.fit": _fit,
    "retriever.length": _length,
    "retriever.cache": _cache,
}
