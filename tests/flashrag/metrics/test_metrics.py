"""The answer metrics against expectations worked out by hand from the official SQuAD and HotpotQA rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.episode import RESEARCH, find_answer
from flashrag.metrics import (
    answer_in_top_k,
    cover_exact_match,
    exact_match,
    f1_score,
    holds_answer,
    normalize_answer,
    precision_score,
    recall_score,
    score_answer,
    support_coverage,
    supporting_titles,
    yes_no_accuracy,
)


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


# The official HotpotQA scorer (hotpot_evaluate_v1.py) gives (f1, precision, recall) for one gold answer. These are its
# values, worked out by hand; exact match beside them is SQuAD's.
OFFICIAL = [
    # prediction, gold, em, precision, recall, f1
    ("the Eiffel Tower", "Eiffel tower", 1, 1.0, 1.0, 1.0),  # articles and case do not count
    ("Eiffel Tower, Paris", "Eiffel Tower", 0, 2 / 3, 1.0, 0.8),  # 2*(2/3)/(5/3)
    ("Beyoncé", "Beyonce", 0, 0.0, 0.0, 0.0),  # accents are kept
    ("“King Wu”", "King Wu", 0, 0.0, 0.0, 0.0),  # typographic quotes are no ASCII punctuation: neither word is the same
    ("1,000", "1000", 1, 1.0, 1.0, 1.0),
    ("3.5", "35", 1, 1.0, 1.0, 1.0),  # the official rule drops the point: known, and kept
    ("3 million", "3000000", 0, 0.0, 0.0, 0.0),
    ("yes", "yes", 1, 1.0, 1.0, 1.0),
    ("Yes!", "yes", 1, 1.0, 1.0, 1.0),
    ("yes, he was", "yes", 0, 0.0, 0.0, 0.0),  # HotpotQA's rule: never partly right
    ("no", "no longer", 0, 0.0, 0.0, 0.0),
    ("noanswer", "answer", 0, 0.0, 0.0, 0.0),
    ("", "King Wu", 0, 0.0, 0.0, 0.0),
    ("the", "King Wu", 0, 0.0, 0.0, 0.0),
    ("a man a plan", "man plan", 1, 1.0, 1.0, 1.0),
    ("new new york", "new york", 0, 2 / 3, 1.0, 0.8),  # shared: new once, york once
    ("Straße", "STRASSE", 0, 0.0, 0.0, 0.0),  # lower-casing, not case folding
]


@pytest.mark.parametrize(("prediction", "gold", "em", "precision", "recall", "f1"), OFFICIAL)
def test_the_official_scorers_values(prediction: str, gold: str, em: float, precision: float, recall: float, f1: float):
    assert exact_match(prediction, [gold]) == em
    assert precision_score(prediction, [gold]) == pytest.approx(precision)
    assert recall_score(prediction, [gold]) == pytest.approx(recall)
    assert f1_score(prediction, [gold]) == pytest.approx(f1)


def test_precision_and_recall_each_take_their_best_gold_answer():
    # against "wu": P 1/3, R 1/1; against "king wu of zhou dynasty": P 3/3, R 3/5, F1 0.75
    golds = ["Wu", "King Wu of Zhou dynasty"]
    assert precision_score("King Wu Zhou", golds) == 1.0
    assert recall_score("King Wu Zhou", golds) == 1.0
    assert f1_score("King Wu Zhou", golds) == pytest.approx(0.75)
    assert precision_score("x", []) == recall_score("x", []) == 0.0


@pytest.mark.parametrize(
    ("prediction", "golds", "value"),
    [
        ("Yes", ["yes"], 1.0),
        ("yes.", ["True"], 1.0),
        ("No, he could not.", ["no"], 1.0),
        ("False", ["no"], 1.0),
        ("no", ["yes"], 0.0),
        ("not yes", ["yes"], 0.0),  # the first word decides
        ("nothing", ["no"], 0.0),
        ("", ["no"], 0.0),
        ("Wu", ["King Wu"], None),
        ("yes", [], None),
    ],
)
def test_yes_or_no(prediction: str, golds: list[str], value: float | None):
    assert yes_no_accuracy(prediction, golds) == value


@pytest.mark.parametrize(
    ("passage", "golds", "holds"),
    [
        ('"King Wu of Zhou"\nThe first king.', ["king wu"], True),
        ("He came from the U.S.A. in 1999.", ["USA"], True),
        ("It lasted 1,000 years", ["1000"], True),
        ("Wuhan is a city", ["Wu"], False),
        ("Wu was king", ["king Wu"], False),
        ("there was no one, yes", ["no", "yes"], False),
        ("anything", ["the", ""], False),
        ("", ["Wu"], False),
        ("Zhou was ruled by Wu", ["nobody", "Wu"], True),
    ],
)
def test_a_passage_holds_an_answer_as_whole_words(passage: str, golds: list[str], holds: bool):
    assert holds_answer(passage, golds) is holds


def test_answer_recall_takes_the_best_search():
    searches = [["text", "text", "King Wu"], ["text", "Wu"]]
    assert [answer_in_top_k(searches, ["Wu"], k) for k in (1, 2, 3, None)] == [0.0, 1.0, 1.0, 1.0]
    assert answer_in_top_k([], ["Wu"], 5) == 0.0
    assert answer_in_top_k(searches, ["yes"], 5) is None
    assert answer_in_top_k(searches, ["yes", "Wu"], 5) == 1.0


@pytest.mark.parametrize(
    ("metadata", "coverage"),
    [
        ({"golden_doc_ids": ["1", 2]}, 0.5),
        ({"supporting_titles": ["Alû ", "lilu (mythology)", "Gallu", "Ereshkigal"]}, 0.5),
        ({"supporting_facts": [["Alû", 3], ["Alû", 4], ["Gallu", 0]]}, 0.5),
        ({"supporting_facts": {"title": ["Alû"], "sent_id": [3]}}, 1.0),
        ({"paragraphs": [{"title": "Alû", "is_supporting": True}, {"title": "x", "is_supporting": False}]}, 1.0),
        ({"supporting_facts": []}, None),
        ({"hops": 2}, None),
    ],
)
def test_support_coverage_counts_each_document_once(metadata: dict[str, object], coverage: float | None):
    assert support_coverage(metadata, ids=["1", "9", "1"], titles=["ALÛ", "Lilu (mythology)", "other"]) == coverage


def test_nothing_retrieved_covers_nothing():
    assert support_coverage({"golden_doc_ids": ["1"]}, [], []) == 0.0


def test_a_boxed_answer_keeps_its_nested_braces_and_is_scored_without_them():
    answer = find_answer([r"<answer> it is \boxed{f(x) = {a}^{2}_{b}} </answer>"], RESEARCH)
    assert answer == "f(x) = {a}^{2}_{b}"
    assert normalize_answer(answer) == "fx a2b"
    assert exact_match(find_answer([r"<answer>\boxed{\text{King {Wu}}}</answer>"], RESEARCH), ["textking wu"]) == 1.0
    assert exact_match(find_answer([r"<answer>\boxed{\text{King Wu}}</answer>"], RESEARCH), ["King Wu"]) == 1.0
    assert find_answer([r"<answer>\boxed{never closed</answer>"], RESEARCH) == ""


def test_supporting_titles_come_from_what_is_named():
    facts = {"title": ["Wu", "Zhou", "Wu"], "sent_id": [0, 0, 1]}
    assert supporting_titles({"supporting_facts": facts}) == ("Wu", "Zhou")
    assert supporting_titles({"supporting_facts": [["Wu", 0], ["Zhou", 0], ["Wu", 1]]}) == ("Wu", "Zhou")
    assert supporting_titles({"supporting": ["a", "b", "a"]}) == ("a", "b")
    paragraphs = [{"title": "Tang", "is_supporting": False}, {"title": "Wu", "is_supporting": True}]
    assert supporting_titles({"paragraphs": paragraphs}) == ("Wu",)
    assert supporting_titles({}) == ()
