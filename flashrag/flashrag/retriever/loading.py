"""From settings to a retriever, in two steps: check every file (quick, no torch), then load.

A command that loads a retriever calls `prepare_process` first: importing this package changes nothing by itself.
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashrag.corpus import Corpus, open_corpus
from flashrag.retriever.base import Retriever
from flashrag.retriever.encoder_folder import (
    PASSAGE_TOKENS,
    family,
    model_sha256,
    pooling_method,
    resolve_model_folder,
    spaced,
)
from flashrag.retriever.hybrid import HybridRetriever, joint_corpus
from flashrag.retriever.index_card import IndexCard, check_card, find_index, read_card
from flashrag.retriever.settings import Kind, RetrieverSettings

# Variables that torch, faiss and the tokenizers read when they are first imported.
PROCESS_VARIABLES = {
    "OMP_WAIT_POLICY": "PASSIVE",  # an OpenMP thread with nothing to do leaves its core to others
    "TOKENIZERS_PARALLELISM": "false",  # its own threads fight with ours and with faiss's
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
FORWARD_THREADS_VARIABLE = "RESEARCH_FORWARD_THREADS"  # forward passes at a time on the CPU; default: torch's threads


@dataclass(frozen=True)
class Assets:
    """The files of a retriever, found and checked against each other.

    `load` makes the retriever of them and imports torch, faiss or bm25s. It is given a dense index that is searched in
    place of the file at `index_path`, or None.
    """

    settings: RetrieverSettings
    corpus: Sized
    load: Callable[[Any], Retriever]
    model_folder: Path | None = None


def prepare_process(searches: int | None = None) -> None:
    """Set this process's environment for searching or building, before torch or faiss is imported.

    `searches` is the number of searches that may run at once. Their faiss threads divide the cores; one of several
    is not counted, because it hands over answers or waits for queries. All searches share the encoder's forward
    passes, which may take every core. A variable that is set already keeps its value.
    """
    if searches is not None:
        cores = len(os.sched_getaffinity(0))
        os.environ.setdefault(FORWARD_THREADS_VARIABLE, os.environ.get("OMP_NUM_THREADS", str(cores)))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(1, searches - 1))))
    for name, value in PROCESS_VARIABLES.items():
        os.environ.setdefault(name, value)


def load_retriever(config: Mapping[str, Any]) -> Retriever:
    """The retriever that the retrieval keys of `config` describe; raises UserError naming the key that does not fit."""
    return load_retriever_from(check_assets(RetrieverSettings.from_config(config)))


def is_sharded(settings: RetrieverSettings) -> bool:
    """Whether the index is a folder of shards (flashrag.retriever.index_shards)."""
    return settings.kind is Kind.DENSE and settings.index_path is not None and settings.index_path.is_dir()


def check_assets(
    settings: RetrieverSettings, *, shards: bool = False, corpora: Mapping[Path, Corpus] | None = None
) -> Assets:
    """Find models, indexes and corpora and check them against the indexes' cards; raises UserError.

    Reads corpora and weights once for their fingerprints (about 4 s a GiB), writes the corpus cache where missing, and
    asks remote servers for their health. With `shards` the index is a folder of them, and the caller gives
    `load_retriever_from` something that searches them. `corpora` are open already, by their absolute paths.
    """
    return _check(settings, dict(corpora or {}), shards)


def load_retriever_from(assets: Assets, index: Any = None) -> Retriever:
    """Load the retriever from the files that `check_assets` found.

    `index` is searched in place of the file at `index_path`: shards on other machines, for example.
    """
    if assets.settings.gpu_id is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(assets.settings.gpu_id)  # read when torch is first imported
    return assets.load(index)


def _check(settings: RetrieverSettings, corpora: dict[Path, Corpus], shards: bool = False) -> Assets:
    """`corpora` holds the corpora that are open already, so that retrievers over one file share it."""
    if not settings.use_reranker:
        return _check_first_stage(settings, corpora, shards)
    assert settings.rerank_model_path is not None, "checked by RetrieverSettings"
    folder = resolve_model_folder(settings.rerank_model_path, "rerank_model_path")
    candidates = _check_first_stage(settings, corpora, shards)

    def load(index: Any) -> Retriever:
        from flashrag.retriever.reranker import PairScorer, RerankedRetriever

        retriever = candidates.load(index)
        length, size, fp16 = settings.rerank_max_length, settings.rerank_batch_size, settings.rerank_use_fp16
        scorer = PairScorer(folder, length, size, fp16, settings.trust_remote_code)
        return RerankedRetriever(retriever, scorer, candidates=retriever.topk, topk=settings.rerank_topk)

    return replace(candidates, load=load)


def _check_first_stage(settings: RetrieverSettings, corpora: dict[Path, Corpus], shards: bool) -> Assets:
    match settings.kind:
        case Kind.HYBRID:
            setting = settings.multi_retriever_setting
            assert setting is not None, "checked by RetrieverSettings"
            parts = [_check(part, corpora) for part in setting.retriever_list]

            def load_hybrid(_: Any) -> Retriever:
                return HybridRetriever([part.load(None) for part in parts], setting.topk, setting.rrf_k)

            return Assets(settings, joint_corpus([part.corpus for part in parts]), load_hybrid)
        case Kind.REMOTE:
            from flashrag.retriever.remote import RemoteRetriever, check_remote

            assert settings.remote_retriever_url is not None, "checked by RetrieverSettings"
            urls, count = check_remote(settings.remote_retriever_url)
            return Assets(settings, count, lambda _: RemoteRetriever(urls, count, settings.retrieval_topk))
    return _check_files(settings, corpora, shards)


def _check_files(settings: RetrieverSettings, corpora: dict[Path, Corpus], shards: bool) -> Assets:
    method, index_path, corpus_path = settings.retrieval_method, settings.index_path, settings.corpus_path
    assert index_path is not None and corpus_path is not None, "checked by RetrieverSettings"
    model_folder = None
    if settings.retrieval_model_path is not None:
        model_folder = resolve_model_folder(settings.retrieval_model_path, "retrieval_model_path")
    if shards:
        from flashrag.retriever.index_shards import read_shards  # here: it is also run as a module

        card = read_shards(index_path)[0].index_card
    else:
        find_index(index_path, method)
        card = read_card(index_path, method)
    source = corpus_path.absolute()
    if source not in corpora:
        corpora[source] = open_corpus(corpus_path, index_path.absolute().parent)
    corpus = corpora[source]
    if card is not None:
        fingerprint = model_sha256(model_folder) if model_folder else None
        instruction = None if settings.instruction is None else spaced(settings.instruction)
        check_card(card, method, corpus.sha256, fingerprint, settings.retrieval_pooling_method, instruction)

    def load(index: Any) -> Retriever:
        if model_folder is not None:
            return _load_dense(settings, corpus, card, model_folder, index)
        from flashrag.retriever.bm25 import BM25Retriever, read_index

        assert card is not None, "find_index refuses a bm25 folder without its card"
        return BM25Retriever(read_index(index_path, card), corpus, settings.retrieval_topk)

    return Assets(settings, corpus, load, model_folder)


def _load_dense(
    settings: RetrieverSettings, corpus: Corpus, card: IndexCard | None, model_folder: Path, index: Any
) -> Retriever:
    from flashrag.retriever.dense import DenseRetriever
    from flashrag.retriever.encoder import Encoder
    from flashrag.retriever.faiss_index import check_on_gpus, is_large, read_index, set_search_depth

    if index is None:
        assert settings.index_path is not None, "checked by RetrieverSettings"
        if settings.faiss_gpu and is_large(settings.index_path):  # before it is read into memory
            mapped = read_index(settings.index_path, mmap=True, l2=True)
            set_search_depth(mapped, settings.faiss_nprobe, settings.faiss_ef_search)
            check_on_gpus(mapped)
        index = read_index(settings.index_path, settings.faiss_mmap, l2=True)
        set_search_depth(index, settings.faiss_nprobe, settings.faiss_ef_search)
    explicit_pooling = settings.retrieval_pooling_method or (card.pooling if card else None)
    encoder = Encoder(
        model_folder,
        pooling_method(model_folder, settings.retrieval_method, explicit_pooling),
        settings.retrieval_query_max_length,
        settings.retrieval_use_fp16,
        "retrieval_model_path",
        settings.trust_remote_code,
    )
    if settings.instruction is not None:
        query_instruction = spaced(settings.instruction)
    else:
        query_instruction = card.query_instruction if card else family(settings.retrieval_method).query
    if card is None:
        _check_without_card(settings, corpus, encoder, index)
    return DenseRetriever(settings, index, corpus, encoder, query_instruction)


def _check_without_card(settings: RetrieverSettings, corpus: Corpus, encoder: Any, index: Any) -> None:
    """Compare a sample of an index with the encoder; raises UserError. A note says how to write its card."""
    from flashrag.retriever.faiss_index import read_index
    from flashrag.retriever.index_check import Part, check_size, check_vectors
    from flashrag.retriever.index_shards import read_shards

    path = settings.index_path
    assert path is not None, "checked by RetrieverSettings"
    check_size(index, corpus, encoder)
    parts, remedy = [Part(index)], f"write it once, for a quick start: {_card_command(settings)}"
    if is_sharded(settings):
        parts = [Part(read_index(path / shard.file, mmap=True), shard.row_offset) for shard in read_shards(path)]
        remedy = "write that of the index and split it again, for a quick start"
    of_family = family(settings.retrieval_method)
    encoder.cut_at(PASSAGE_TOKENS)
    count = check_vectors(parts, corpus, encoder, of_family.passage, settings.retrieval_batch_size, not of_family.unit)
    encoder.cut_at(settings.retrieval_query_max_length)
    outcome = f"{count} of its vectors are the encoder's" if count else "its type cannot give its vectors back"
    print(f"note: the index {path} has no card beside it; {outcome}; {remedy}", file=sys.stderr)


def _card_command(settings: RetrieverSettings) -> str:
    flags = {
        "write_card": settings.index_path,
        "retrieval_method": settings.retrieval_method,
        "model_path": settings.retrieval_model_path,
        "corpus_path": settings.corpus_path,
        "pooling_method": settings.retrieval_pooling_method,
    }
    given = [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]
    return shlex.join(["python", "-m", "flashrag.retriever.index_builder", *given])
