"""Where sentences end, and where a chain of thought says its answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.pipeline.chain_of_thought import cued_answer, first_sentence, marked_answer


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" Wu was king. He was wise.", " Wu was king."),
        ("J. R. R. Tolkien wrote it. Then", "J. R. R. Tolkien wrote it."),
        ("Dr. No met Mr. Bond vs. St. John! Then", "Dr. No met Mr. Bond vs. St. John!"),
        ("It is 3.5 km long. Then", "It is 3.5 km long."),
        ('He said "no." Then', 'He said "no."'),
        ("first line\nsecond line", "first line"),
        ("\n\n Wu. Then", "\n\n Wu."),
        ("no end", "no end"),
        ("", ""),
    ],
)
def test_a_first_sentence_ends_where_a_reader_would_end_it(text: str, sentence: str):
    assert first_sentence(text) == sentence


@given(st.text())
def test_a_first_sentence_is_a_beginning(text: str):
    sentence = first_sentence(text)
    assert text.startswith(sentence)
    assert sentence.strip() or not text.strip()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is: King Wu.", "King Wu"),
        ("The answer is no. So the final answer is: yes\nQuestion: next", "yes"),
        ("the ANSWER IS 42", "42"),
        ("So the answer is:", ""),
        ("Nothing to say.", None),
    ],
)
def test_an_answer_follows_its_marker(text: str, answer: str | None):
    assert marked_answer(text) == answer


def test_an_answer_behind_a_cue_is_its_first_sentence():
    assert cued_answer(" J. R. R. Tolkien. He was a don.") == "J. R. R. Tolkien"
    assert cued_answer("\nKing Wu\nQuestion: next") == "King Wu"
