"""avg@n, pass@k and maj@n by hand, their bounds, and intervals that resample questions, not answers."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scores.samples import Answer, majority_is_right, pass_at_k, sample_figures
from evaluation.scores.significance import bootstrap_mean

WU, TANG, NONE = Answer("King Wu", True), Answer("Tang", False), Answer("", False)


def test_pass_at_k_by_hand():
    # 5 answers, 2 right. Of the C(5, 3) = 10 triples, C(3, 3) = 1 has no right one.
    assert pass_at_k(5, 2, 3) == pytest.approx(9 / 10)
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(5, 1, 5) == 1.0


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_the_draws_with_a_right_answer(right: list[bool], data: st.DataObject):
    k = data.draw(st.integers(1, len(right)))
    draws = [any(draw) for draw in combinations(right, k)]
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(draws) / len(draws))


@given(st.integers(1, 40), st.data())
def test_pass_at_1_is_the_mean_and_pass_at_k_never_falls(n: int, data: st.DataObject):
    right = data.draw(st.integers(0, n))
    values = [pass_at_k(n, right, k) for k in range(1, n + 1)]
    assert values[0] == pytest.approx(right / n)
    assert all(0.0 <= low <= high <= 1.0 for low, high in pairwise(values))
    assert values[-1] == float(right > 0)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([WU, TANG, WU], 1.0),
        ([WU, TANG, TANG], 0.0),
        ([WU, TANG, Answer("the king, Wu!", True), TANG, WU], 1.0),  # as a metric sees them, three are "king wu"
        ([WU, TANG], 0.5),  # one of the two is drawn
        ([NONE, NONE, WU], 1.0),  # an empty answer has no vote
        ([NONE, NONE], 0.0),
        ([Answer("Wu", True), Answer("King Wu", True), TANG, TANG], 0.0),  # two right answers, each with one vote
    ],
)
def test_the_majority_by_hand(answers: list[Answer], expected: float):
    assert majority_is_right(answers) == expected


@given(st.lists(st.sampled_from([WU, TANG, NONE, Answer("Wen", False)]), min_size=1, max_size=9))
def test_a_majority_is_a_probability_and_certain_where_all_agree(answers: list[Answer]):
    value = majority_is_right(answers)
    assert 0.0 <= value <= 1.0
    if not any(answer.right for answer in answers):
        assert value == 0.0
    if all(answer.right for answer in answers):
        assert value == 1.0


def test_the_figures_of_two_questions_by_hand():
    figures = sample_figures([[WU, TANG, TANG, WU], [TANG, TANG, NONE, WU]])
    # Right: 2 and 1 of 4. pass@2: 1 - C(2,2)/C(4,2) = 5/6 and 1 - C(3,2)/C(4,2) = 1/2. maj: a tie (1/2), and Tang (0).
    assert {name: figure["mean"] for name, figure in figures.items()} == {
        "avg@4": pytest.approx(3 / 8),
        "pass@1": pytest.approx(3 / 8),
        "pass@2": pytest.approx((5 / 6 + 1 / 2) / 2),
        "pass@4": 1.0,
        "maj@4": 0.25,
    }
    assert {figure["n"] for figure in figures.values()} == {2}


def test_k_are_the_powers_of_two_and_n():
    assert list(sample_figures([[WU] * 5])) == ["avg@5", "pass@1", "pass@2", "pass@4", "pass@5", "maj@5"]


def test_more_answers_to_the_same_questions_do_not_narrow_the_interval():
    """Each question is always answered in the same way: 8 answers say no more than one."""
    questions = [[WU] * 8 if number % 3 else [TANG] * 8 for number in range(30)]
    one = bootstrap_mean([float(answers[0].right) for answers in questions])
    assert sample_figures(questions)["avg@8"] == one._asdict()
