import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from flashrag.config import Config
from flashrag.errors import UserError
from flashrag.retriever.index_builder import main as build
from flashrag.retriever.reranker import PairScorer, RerankedRetriever
from flashrag.utils import get_retriever

TEXTS = ["apple fig", "apple banana cherry", "apple", "apple date elder fig grape", "zebra"]


@pytest.fixture
def folder(tmp_path, tiny_bert):
    return tiny_bert(tmp_path / "cross", BertForSequenceClassification)


@pytest.fixture
def values(tmp_path, folder):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"d{n}", "contents": text}) + "\n" for n, text in enumerate(TEXTS)))
    assert build(["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(tmp_path)]) == 0
    return {
        "retrieval_method": "bm25",
        "index_path": str(tmp_path / "bm25"),
        "corpus_path": str(corpus),
        "retrieval_topk": 3,
        "use_reranker": True,
        "rerank_model_path": str(folder),
        "rerank_topk": 2,
    }


def by_hand(folder, query, text):
    """The model's own score of one pair: the logit through a sigmoid, as a cross-encoder of one label gives it."""
    features = AutoTokenizer.from_pretrained(folder)(query, text, return_tensors="pt")
    with torch.inference_mode():
        return float(AutoModelForSequenceClassification.from_pretrained(folder)(**features).logits.sigmoid())


def test_candidates_are_ranked_by_the_models_own_scores(values, folder):
    reranked = get_retriever(Config(config_dict=values))
    plain = get_retriever(Config(config_dict={**values, "use_reranker": False}))
    assert isinstance(reranked, RerankedRetriever)
    assert (reranked.method, reranked.topk, len(reranked.corpus)) == ("bm25+rerank", 2, 5)
    candidates = plain.search("apple", 3)
    expected = sorted(((by_hand(folder, "apple", d.contents), d) for d in candidates), key=lambda pair: -pair[0])
    assert len({score for score, _ in expected}) == 3
    documents, scores = reranked.search("apple", return_score=True)
    assert documents == [document for _, document in expected[:2]]
    assert scores == pytest.approx([score for score, _ in expected[:2]], abs=1e-6)


def test_a_caller_who_asks_for_more_gets_more_candidates_scored(values):
    reranked = get_retriever(Config(config_dict=values))
    assert sorted(document.id for document in reranked.search("apple", 10)) == ["d0", "d1", "d2", "d3"]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_batches_keep_length_order_and_pairing(values, count):
    reranked = get_retriever(Config(config_dict=values))
    queries = ["apple", "no such word", "fig grape"][:count]
    alone = [reranked.rank([query], 4)[0] for query in queries]
    together = reranked.rank(queries, 4)
    assert [[hit.document for hit in hits] for hits in together] == [[hit.document for hit in hits] for hits in alone]
    assert [len(hits) for hits in together] == [4, 0, 2][:count]


def test_threads_get_what_one_gets(folder):
    scorer = PairScorer(folder, 32, 256, False)
    pairs = [(f"query {letter}", f"text {letter * number}") for number, letter in enumerate("abcdefghij")]
    expected = scorer.score(pairs)
    with ThreadPoolExecutor(8) as pool:
        for start, scores in enumerate(pool.map(lambda start: scorer.score(pairs[start:]), range(8))):
            assert scores == pytest.approx(expected[start:], abs=1e-6)


def test_long_pairs_are_cut(folder):
    assert len(PairScorer(folder, 100_000, 8, False).score([("word " * 3000, "text " * 3000)])) == 1


def test_what_is_no_cross_encoder_is_refused(values, tmp_path, tiny_bert):
    several = tiny_bert(tmp_path / "several", BertForSequenceClassification, num_labels=3)
    with pytest.raises(UserError, match=r"rerank_model_path: the model in .*several gives 3 scores to a pair"):
        get_retriever(Config(config_dict={**values, "rerank_model_path": str(several)}))
    with pytest.raises(UserError, match="rerank_model_path: 'nowhere' is neither a folder nor"):
        get_retriever(Config(config_dict={**values, "rerank_model_path": "nowhere"}))
    (several / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"rerank_model_path: the model in .*several cannot be loaded"):
        get_retriever(Config(config_dict={**values, "rerank_model_path": str(several)}))
