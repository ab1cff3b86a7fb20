"""The answer metrics against expectations worked out by hand from the official SQuAD and HotpotQA rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.metrics import cover_exact_match, exact_match, f1_score, normalize_answer, score_answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The King of Zhou", "king of zhou"),
        ("  a  b\tc\n", "b c"),
        ("An apple, a day!", "apple day"),
        ("U.S.A.", "usa"),  # punctuation is removed, not replaced by a space
        ("twenty-one", "twentyone"),
        ("the", ""),
        ("theatre", "theatre"),  # articles are words
        ("A", ""),  # SQuAD's rule drops a lone "A" too
        ("\\boxed{}", "boxed"),
        ("L'Étoile", "létoile"),
        ("—", "—"),  # only ASCII punctuation counts
        ("", ""),
    ],
)
def test_normalisation(text: str, normalized: str):
    assert normalize_answer(text) == normalized


def test_exact_match_takes_the_best_gold_answer():
    assert exact_match("The King Wu.", ["Wu", "king wu"]) == 1.0
    assert exact_match("King Wu of Zhou", ["King Wu"]) == 0.0
    assert exact_match("King Wu", []) == 0.0


def test_an_empty_prediction_is_never_right():
    assert score_answer("", ["the", ""]) == (0.0, 0.0, 0.0)
    assert score_answer("The.", ["a"]) == (0.0, 0.0, 0.0)


def test_f1_by_hand():
    # prediction: king wu of zhou (4), gold: king wu (2), shared 2: P = 2/4, R = 2/2, F1 = 2 * .5 * 1 / 1.5 = 2/3
    assert f1_score("King Wu of Zhou", ["King Wu"]) == pytest.approx(2 / 3)
    # the best of the gold answers counts, the order of words does not
    assert f1_score("Wu King", ["nobody", "King Wu"]) == 1.0
    # words count as often as they occur: shared {la: 1}, P = 1/2, R = 1/1
    assert f1_score("la la", ["la"]) == pytest.approx(2 / 3)
    assert f1_score("King Wu", ["Emperor Qin"]) == 0.0
    assert f1_score("King Wu", []) == 0.0


@pytest.mark.parametrize(
    ("prediction", "gold"), [("yes", "no"), ("yes it is", "yes"), ("no", "no man's land"), ("noanswer", "no answer")]
)
def test_a_yes_or_no_answer_has_no_partial_f1(prediction: str, gold: str):
    assert f1_score(prediction, [gold]) == 0.0


def test_a_right_yes_has_full_f1():
    assert score_answer("Yes.", ["yes"]) == (1.0, 1.0, 1.0)


def test_accuracy_is_cover_exact_match():
    assert cover_exact_match("It was King Wu of Zhou", ["The King Wu"]) == 1.0
    assert cover_exact_match("Wu", ["King Wu"]) == 0.0
    assert cover_exact_match("anything", ["the", ""]) == 0.0  # nothing is left of these after normalisation


WORDS = st.lists(st.sampled_from(["king", "Wu", "the", "of", "Zhou", "yes", "no", "."]), max_size=5).map(" ".join)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_the_three_metrics_agree_where_they_must(prediction: str, golds: list[str]):
    em, f1, acc = score_answer(prediction, golds)
    assert em in (0.0, 1.0)
    assert acc in (0.0, 1.0)
    assert 0.0 <= f1 <= 1.0
    if em:
        assert f1 == pytest.approx(1.0)
        assert acc == 1.0
    # A right answer among more gold answers stays right.
    assert score_answer(prediction, [*golds, "something else"]) >= (em, f1, acc)


@given(st.text())
def test_normalisation_is_idempotent(text: str):
    once = normalize_answer(text)
    assert normalize_answer(once) == once
