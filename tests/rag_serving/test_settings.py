from pathlib import Path

import pytest

import rag_serving
from flashrag.errors import UserError
from rag_serving.settings import read_settings


def test_the_shipped_config_is_valid():
    settings = read_settings(Path(rag_serving.__file__).parent / "serving_config.yaml")
    assert (settings.retrieval_method, settings.retrieval_topk, settings.max_top_n) == ("e5", 5, 1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retrieval_topk": 20, "max_top_n": 10}, "retrieval_topk is 20, but max_top_n is 10"),
        ({"max_topn": 10}, "unknown key 'max_topn'; did you mean 'max_top_n'"),
        ({"max_query_chars": 0}, "max_query_chars: 0 was given"),
        ({"retrieval_method": "e5"}, "retrieval_model_path is not set"),
        ({"generator_model": "x"}, "unknown key 'generator_model'"),
    ],
)
def test_unknown_or_contradictory_keys_are_refused(site, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_settings(site.with_config(**changes))
    assert "changed.yaml" in str(caught.value)


def test_more_documents_than_a_search_on_gpus_finds_are_refused(site):
    dense = {"retrieval_method": "e5", "retrieval_model_path": "m", "faiss_gpu": True}
    assert read_settings(site.with_config(**dense, max_top_n=2048)).faiss_gpu
    with pytest.raises(UserError, match="max_top_n is 2049, but faiss_gpu is true, and a search on GPUs finds at most"):
        read_settings(site.with_config(**dense, max_top_n=2049))
    part = {**dense, "index_path": "i", "corpus_path": "c"}
    hybrid = {"retrieval_method": "hybrid", "index_path": None}
    setting = {"use_multi_retriever": True, "multi_retriever_setting": {"retriever_list": [part]}}
    with pytest.raises(UserError, match="max_top_n is 2049, but faiss_gpu is true"):
        read_settings(site.with_config(**hybrid, **setting, max_top_n=2049))
