"""The retriever of a sharded index: an encoder and a corpus like any other's, over an index that is elsewhere."""

from flashrag.corpus import open_corpus
from flashrag.errors import UserError
from flashrag.retriever import Assets, RetrieverSettings
from flashrag.retriever.encoder_folder import model_sha256, resolve_model_folder, spaced
from flashrag.retriever.index_card import check_card
from flashrag.retriever.index_shards import read_shards
from flashrag.retriever.settings import Kind


def is_sharded(settings: RetrieverSettings) -> bool:
    return settings.kind is Kind.DENSE and settings.index_path is not None and settings.index_path.is_dir()


def check_sharded_assets(settings: RetrieverSettings) -> Assets:
    """Find the encoder and the corpus, and hold them against the card of the index that was split; raises UserError."""
    assert settings.retrieval_model_path and settings.index_path and settings.corpus_path, "checked by the settings"
    if settings.faiss_gpu:
        raise UserError("faiss_gpu: true was given, but shards are searched on the processors; set it to false")
    shards = read_shards(settings.index_path)
    model_folder = resolve_model_folder(settings.retrieval_model_path, "retrieval_model_path")
    rerank_folder = None
    if settings.use_reranker:
        assert settings.rerank_model_path is not None, "checked by the settings"
        rerank_folder = resolve_model_folder(settings.rerank_model_path, "rerank_model_path")
    corpus = open_corpus(settings.corpus_path, settings.index_path.absolute().parent)
    if shards.index_card is not None:
        instruction = None if settings.instruction is None else spaced(settings.instruction)
        check_card(
            shards.index_card,
            settings.retrieval_method,
            corpus.sha256,
            model_sha256(model_folder),
            settings.retrieval_pooling_method,
            instruction,
        )
    return Assets(settings, corpus, shards.index_card, model_folder, rerank_folder)
