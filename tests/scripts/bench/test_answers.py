"""Whether an answer is the direct search's: scores and orders computed by hand, and every dialect's shape."""

import numpy as np
import pytest

from scripts.bench.answers import Ranking, Truth, direct_truth, parse_rankings

# Passage b is the best for "q"; c and d tie within the tolerance.
TRUTH = Truth(np.array([[0.1, 0.9, 0.50000, 0.50004]], dtype=np.float32), ["q"], ["1", "2", "3", "4"], list("abcd"))


@pytest.mark.parametrize(
    ("num", "ranking"),
    [
        (1, Ranking(["b"], ["2"], [0.9])),
        (1, Ranking(["b"])),
        (3, Ranking(["b", "d", "c"], ["2", "4", "3"], [0.9, 0.5, 0.5])),
        (3, Ranking(["b", "c", "d"], ["2", "3", "4"], [0.9, 0.5, 0.5])),  # a tie may stand either way round
        (2, Ranking(["b", "c"])),  # and either half of it may be the one that is left out
        (9, Ranking(["b", "d", "c", "a"])),  # all there are
    ],
)
def test_right_answers(num, ranking):
    assert TRUTH.problem("q", num, ranking) is None


@pytest.mark.parametrize(
    ("num", "ranking", "problem"),
    [
        (1, Ranking(["x"]), "a passage that the corpus does not hold"),
        (1, Ranking(["b"], ["1"]), "the id of another passage"),
        (2, Ranking(["b"]), "1 passages, 1 different ones, instead of 2"),
        (2, Ranking(["b", "b"]), "2 passages, 1 different ones, instead of 2"),
        (1, Ranking(["b"], ["2"], [0.8998]), "scores that are not the passages'"),
        (2, Ranking(["b", "d"], ["2", "4"], [0.9]), "scores that are not the passages'"),
        (2, Ranking(["d", "b"]), "not the best passages, best first"),
        (1, Ranking(["d"]), "not the best passages, best first"),
        (2, Ranking(["b", "a"]), "not the best passages, best first"),
    ],
)
def test_wrong_answers(num, ranking, problem):
    assert TRUTH.problem("q", num, ranking) == problem


DOC, OTHER = {"id": "1", "contents": "a"}, {"id": "2", "contents": "b"}


@pytest.mark.parametrize(
    ("route", "scored", "payload", "rankings"),
    [
        ("/search", False, [DOC, OTHER], [Ranking(["a", "b"], ["1", "2"])]),
        ("/search", True, [[DOC, OTHER], [0.5, 0.25]], [Ranking(["a", "b"], ["1", "2"], [0.5, 0.25])]),
        ("/batch_search", False, [[DOC], [OTHER]], [Ranking(["a"], ["1"]), Ranking(["b"], ["2"])]),
        (
            "/batch_search",
            True,
            [[[DOC], [OTHER]], [[0.5], [0.25]]],
            [Ranking(["a"], ["1"], [0.5]), Ranking(["b"], ["2"], [0.25])],
        ),
        ("/retrieve", False, {"result": [[DOC]]}, [Ranking(["a"], ["1"])]),
        ("/retrieve", True, {"result": [[{"document": DOC, "score": 0.5}]]}, [Ranking(["a"], ["1"], [0.5])]),
        ("/queries", False, {"queries": ["q"], "answers": [["a", "b"]]}, [Ranking(["a", "b"])]),
    ],
)
def test_every_dialect_is_read(route, scored, payload, rankings):
    assert parse_rankings(route, scored, payload) == rankings


@pytest.mark.parametrize(
    ("route", "scored", "payload"),
    [
        ("/search", True, [[DOC, OTHER]]),  # the scores missing
        ("/search", False, [[DOC], [0.5]]),  # scores that nobody asked for
        ("/batch_search", True, [[[DOC], [OTHER]], [[0.5]]]),
        ("/retrieve", False, {"results": []}),
        ("/queries", False, {"queries": ["q", "r"], "answers": [["a"]]}),
        ("/elsewhere", False, []),
    ],
)
def test_another_shape_is_an_error(route, scored, payload):
    with pytest.raises((KeyError, TypeError, ValueError)):
        parse_rankings(route, scored, payload)


@pytest.mark.slow
def test_the_direct_search_scores_every_passage(dense_site):
    queries = ["Where did jazz begin?", "the capital of Italy"]
    truth = direct_truth(dense_site, queries)
    assert truth.scores_QN.shape == (2, dense_site.passages)
    best = [dense_site.titles[row] for row in truth.scores_QN.argmax(axis=1)]
    assert best == ["Jazz", "Rome"]
