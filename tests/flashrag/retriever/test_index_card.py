"""Sizes, versions and older cards (mismatches of corpus, encoder and method are in test_retriever_settings.py)."""

import json

import pytest

from flashrag.errors import UserError
from flashrag.retriever.index_builder import main as build
from flashrag.retriever.index_card import IndexCard, check_card, read_card

OLD_CARD = {  # as written before cards had sizes, parameters and versions
    "retrieval_method": "e5",
    "count": 2,
    "corpus_sha256": "c" * 64,
    "corpus": "c.jsonl",
    "model": "models/e5",
    "model_sha256": "m" * 64,
    "dimension": 768,
    "pooling": "mean",
    "max_length": 256,
    "query_instruction": "query: ",
    "passage_instruction": "passage: ",
    "faiss_type": "Flat",
    "bm25": None,
}


def test_a_card_of_the_former_version_is_read(tmp_path):
    (tmp_path / "e5_Flat.index.json").write_text(json.dumps(OLD_CARD))
    (tmp_path / "e5_Flat.index").write_bytes(b"any size")
    card = read_card(tmp_path / "e5_Flat.index", "e5")
    assert card == IndexCard(**OLD_CARD)
    assert (card.index_bytes, card.faiss_parameters, card.versions) == (None, None, None)
    check_card(card, "e5", "c" * 64, "m" * 64)


def test_an_index_of_another_size_than_its_cards_is_refused(tmp_path):
    index = tmp_path / "e5_Flat.index"
    index.write_bytes(b"12345")
    IndexCard(**OLD_CARD, index_bytes=5).write(tmp_path / "e5_Flat.index.json")
    assert read_card(index, "e5") is not None
    index.write_bytes(b"1234")
    with pytest.raises(UserError, match=r"e5_Flat\.index has 4 bytes, but its card says 5: it was cut short"):
        read_card(index, "e5")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pooling": "cls"}, "retrieval_pooling_method: 'cls' was given, but the index was built with 'mean'"),
        ({"query_instruction": ""}, "instruction: '' was given, but the index was built with 'query: '"),
    ],
)
def test_what_a_configuration_asks_for_is_held_against_the_card(asked, message):
    card = IndexCard(**OLD_CARD)
    check_card(card, "e5", "c" * 64, "m" * 64, pooling="mean", query_instruction="query: ")
    with pytest.raises(UserError, match=message):
        check_card(card, "e5", "c" * 64, "m" * 64, **asked)


def test_a_bm25_folder_that_lost_a_file_is_refused(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "1", "contents": "Rome and Paris"}\n')
    assert build(["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(tmp_path)]) == 0
    card = read_card(tmp_path / "bm25", "bm25")
    assert card is not None
    assert set(card.versions or {}) == {"bm25s", "PyStemmer"}
    next((tmp_path / "bm25").glob("*.npy")).unlink()
    with pytest.raises(UserError, match=f"but its card says {card.index_bytes}"):
        read_card(tmp_path / "bm25", "bm25")
