import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.config import Config
from flashrag.errors import UserError
from flashrag.retriever.bm25 import Tokenizer, best_rows
from flashrag.retriever.index_builder import main as build
from flashrag.utils import get_retriever

TEXTS = [
    "apple banana",  # 2 words
    "apple apple cherry date",  # 4 words
    "elder fig grape",  # 3 words
    "",  # 0 words
    "<|endoftext|> \x00 \u202e",  # 1 word: endoftext
]
K1, B = 0.9, 0.4


def bm25_over(folder, texts, *flags):
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"d{n}", "contents": text}) + "\n" for n, text in enumerate(texts)))
    command = ["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(folder), *flags]
    assert build(command) == 0
    values = {"retrieval_method": "bm25", "index_path": str(folder / "bm25"), "corpus_path": str(corpus)}
    return get_retriever(Config(config_dict=values))


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return bm25_over(tmp_path_factory.mktemp("bm25"), TEXTS)


def lucene(count: int, length: int, with_word: int) -> float:
    """BM25 of one word by hand: 5 passages, (2 + 4 + 3 + 0 + 1) / 5 = 2 words on average."""
    idf = math.log(1 + (5 - with_word + 0.5) / (with_word + 0.5))
    return idf * count / (count + K1 * (1 - B + B * length / 2))


def test_scores_are_lucenes_bm25_computed_by_hand(retriever):
    documents, scores = retriever.search("apples", 5, return_score=True)
    assert [document.id for document in documents] == ["d1", "d0"]
    assert scores == pytest.approx([lucene(2, 4, 2), lucene(1, 2, 2)], rel=1e-5)


def test_k1_and_b_are_the_builders(tmp_path):
    plain = bm25_over(tmp_path, TEXTS, "--bm25_k1", "0", "--bm25_b", "0")  # k1 = 0: a word counts once
    _, scores = plain.search("apple", 5, return_score=True)
    assert scores == pytest.approx([math.log(1 + 3.5 / 2.5)] * 2, rel=1e-5)


def test_only_passages_that_share_a_word_are_returned(retriever):
    assert [d.id for d in retriever.search("fig", 5)] == ["d2"]
    assert retriever.search("zebra the of", 5) == []
    assert retriever.search("", 5) == []
    assert [d.contents for d in retriever.search("endoftext", 5)] == [TEXTS[4]]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_batches_keep_length_order_and_pairing(retriever, count):
    queries = ["fig", "apple", "zebra"][:count]
    documents = retriever.batch_search(queries, 2)
    with_scores = retriever.batch_search(queries, 2, return_score=True)
    assert with_scores[0] == documents
    assert [[d.id for d in found] for found in documents] == [["d2"], ["d1", "d0"], []][:count]
    assert [len(scores) for scores in with_scores[1]] == [1, 2, 0][:count]


def test_the_default_number_is_retrieval_topk_and_zero_is_refused(retriever):
    assert retriever.topk == 5
    assert len(retriever.search("apple fig endoftext")) == 4
    with pytest.raises(ValueError, match="num is 0"):
        retriever.search("apple", 0)


def test_equal_scores_keep_the_order_of_the_corpus(tmp_path):
    same = bm25_over(tmp_path, ["same text"] * 7)
    assert [d.id for d in same.search("same", 3)] == ["d0", "d1", "d2"]


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), max_size=30),
    num=st.integers(1, 35),
)
def test_best_rows_equals_a_plain_sort(scores, num):
    plain = sorted((row for row, score in enumerate(scores) if score > 0), key=lambda row: (-scores[row], row))
    assert best_rows(np.array(scores, dtype=np.float32), num) == plain[:num]


def test_the_tokenizer_is_the_documented_one():
    assert Tokenizer().tokenize(["The Cities of a B-52, été и Москва"], return_ids=False) == [
        ["citi", "52", "été", "москва"]
    ]


def test_a_corpus_without_words_is_refused(tmp_path, capsys):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "1", "contents": "a . ,"}\n')
    assert build(["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(tmp_path)]) == 2
    assert "no passage holds an indexable word" in capsys.readouterr().err
    assert not (tmp_path / "bm25").exists()


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (type(self.marker).write_text, (self.marker, "unpickled"))


@pytest.mark.parametrize(
    "name", ["data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "vocab.index.json"]
)
@pytest.mark.parametrize("shape", ["pickle", "array of objects"])
def test_a_damaged_index_is_refused_and_never_unpickled(tmp_path, name, shape):
    bm25_over(tmp_path, TEXTS)
    bomb, marker = tmp_path / "bm25" / name, tmp_path / "marker"
    assert bomb.is_file()
    if shape == "pickle":
        bomb.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        with bomb.open("wb") as file:
            np.save(file, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    card = tmp_path / "bm25" / "index_card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "index_bytes": None}))  # it would find this out before
    values = {
        "retrieval_method": "bm25",
        "index_path": str(tmp_path / "bm25"),
        "corpus_path": str(tmp_path / "corpus.jsonl"),
    }
    with pytest.raises(UserError, match="is not a readable bm25 index"):
        get_retriever(Config(config_dict=values))
    assert not marker.exists()


def test_another_tokenizer_is_refused(tmp_path):
    bm25_over(tmp_path, TEXTS)
    card = tmp_path / "bm25" / "index_card.json"
    card.write_text(card.read_text().replace('"stemmer": "english"', '"stemmer": "none"'))
    values = {
        "retrieval_method": "bm25",
        "index_path": str(tmp_path / "bm25"),
        "corpus_path": str(tmp_path / "corpus.jsonl"),
    }
    with pytest.raises(UserError, match="built with another tokenizer"):
        get_retriever(Config(config_dict=values))
