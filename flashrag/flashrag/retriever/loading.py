"""From settings to a retriever, in two steps: check every file (quick, no torch), then load."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashrag.corpus import Corpus, open_corpus
from flashrag.errors import UserError
from flashrag.retriever.base import Retriever
from flashrag.retriever.index_card import IndexCard, check_card, find_index, read_card
from flashrag.retriever.model_folder import instructions, model_sha256, pooling_method, resolve_model_folder
from flashrag.retriever.settings import BM25, RetrieverSettings

NO_CARD_NOTE = "note: the index {path} has no card beside it; its encoder cannot be verified"


@dataclass(frozen=True)
class Assets:
    """The files of a retriever, found and consistent with one another."""

    settings: RetrieverSettings
    corpus: Corpus
    card: IndexCard | None
    model_folder: Path | None


def load_retriever(config: Mapping[str, Any]) -> Retriever:
    """The retriever that the retrieval keys of `config` describe; raises UserError naming the key that does not fit."""
    return load_retriever_from(check_assets(RetrieverSettings.from_config(config)))


def check_assets(settings: RetrieverSettings) -> Assets:
    """Find model, index and corpus and hold them against the index's card; raises UserError.

    Reads corpus and weights once for their fingerprints (about 4 s a GiB), and writes the corpus cache where missing.
    """
    method = settings.retrieval_method
    dense = method.lower() != BM25
    model_folder = None
    if dense:
        assert settings.retrieval_model_path is not None  # RetrieverSettings refuses a dense method without one
        model_folder = resolve_model_folder(settings.retrieval_model_path, "retrieval_model_path")
    find_index(settings.index_path, method)
    card = read_card(settings.index_path, method)
    corpus = open_corpus(settings.corpus_path, settings.index_path.absolute().parent)
    if card is None:
        print(NO_CARD_NOTE.format(path=settings.index_path), file=sys.stderr)
    else:
        check_card(card, method, corpus.sha256, model_sha256(model_folder) if model_folder else None)
        if settings.retrieval_pooling_method not in (None, card.pooling):
            raise UserError(
                f"retrieval_pooling_method: {settings.retrieval_pooling_method!r} was given, but the index was built "
                f"with {card.pooling!r}; remove the key, or build the index again"
            )
    return Assets(settings, corpus, card, model_folder)


def load_retriever_from(assets: Assets) -> Retriever:
    """Load what `check_assets` found. This is where torch, faiss or bm25s come in."""
    return _load_bm25(assets) if assets.model_folder is None else _load_dense(assets, assets.model_folder)


def _load_bm25(assets: Assets) -> Retriever:
    from flashrag.retriever.bm25 import BM25Retriever, read_index

    assert assets.card is not None  # find_index refuses a bm25 folder without its card
    index = read_index(assets.settings.index_path, assets.card)
    return BM25Retriever(index, assets.corpus, assets.settings.retrieval_topk)


def _load_dense(assets: Assets, folder: Path) -> Retriever:
    settings, card = assets.settings, assets.card
    if settings.gpu_id is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(settings.gpu_id)  # read when torch is first imported
    from flashrag.retriever.dense import DenseRetriever, read_index
    from flashrag.retriever.encoder import Encoder

    explicit_pooling = settings.retrieval_pooling_method or (card.pooling if card else None)
    encoder = Encoder(
        folder,
        pooling_method(folder, settings.retrieval_method, explicit_pooling),
        settings.retrieval_query_max_length,
        settings.retrieval_use_fp16,
        "retrieval_model_path",
    )
    query_instruction = settings.instruction
    if query_instruction is None:
        query_instruction = card.query_instruction if card else instructions(settings.retrieval_method).query
    return DenseRetriever(
        method=settings.retrieval_method,
        index=read_index(settings.index_path),
        corpus=assets.corpus,
        encoder=encoder,
        query_instruction=query_instruction,
        topk=settings.retrieval_topk,
        batch_size=settings.retrieval_batch_size,
        faiss_gpu=settings.faiss_gpu,
    )
