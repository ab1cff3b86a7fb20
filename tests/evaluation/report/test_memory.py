"""The section "search or memory" against figures worked out by hand."""

import pytest

from evaluation.report.memory import memory_tables, search_or_memory
from evaluation.report.page import Run
from evaluation.report.tables import EvaluatedRun
from flashrag.document import Passage
from flashrag.episode import Failure, ToolCall, Trajectory, Usage


def asked(answer: str, searches: int, *found: str, question: str = "Who?", gold: str = "Ada", tool: str = "search"):
    calls = tuple(ToolCall("q", (Passage("1", text),), tool=tool) for text in found)
    return Trajectory("q", question, (gold,), answer=answer, usage=Usage(searches=searches), calls=calls)


TRAJECTORIES = [
    asked("Ada", 0),  # right, from memory
    asked("Bob", 0, question="Was it Ada or Bob?"),  # wrong, though the question holds the answer
    asked("Ada", 1, "Ada was it."),
    asked("Bob", 1, "Nobody", tool="search"),
    asked("Ada", 2, "Nobody", "It was Ada!"),  # the second search found it
    asked("Ada", 5, "Adam"),  # no whole word
    asked("Bob", 4, "Ada", tool="python"),  # code found it, no search
    asked("yes", 1, "yes", gold="yes"),
    Trajectory("f", "Who?", ("Ada",), error=Failure("SearchError", "gone")),
]


def test_the_figures_of_a_run_by_hand():
    figures = search_or_memory([Run("run", TRAJECTORIES, control="empty")], [])
    assert figures == {
        "runs": {
            "run": {
                "search_control": "empty",
                "n": 8,
                "by_searches": {
                    "0": {"n": 2, "em": 1 / 2},
                    "1": {"n": 3, "em": 2 / 3},
                    "2": {"n": 1, "em": 1.0},
                    "4+": {"n": 2, "em": 1 / 2},
                },
                "by_passages": {
                    "answer_found": {"n": 2, "em": 1.0},
                    "answer_not_found": {"n": 5, "em": 2 / 5},
                    "yes_no": {"n": 1, "em": 1.0},
                    "answer_in_question": {"n": 1, "em": 0.0},
                },
            }
        },
        "pairs": [],
    }
    by_searches, by_passages, paired = memory_tables(figures)
    assert by_searches.header == ["run", "control", "answered", "0", "1", "2", "4+"]
    assert by_searches.rows == [["run", "empty", "8", "50.00 (2)", "66.67 (3)", "100.00 (1)", "50.00 (2)"]]
    assert by_passages.rows == [["run", "empty", "8", "100.00 (2)", "40.00 (5)", "100.00 (1)", "0.00 (1)"]]
    assert paired.rows == []


def test_a_run_without_an_answered_question_has_no_figures():
    figures = search_or_memory([Run("run", TRAJECTORIES[-1:])], [])
    assert figures["runs"]["run"] == {"search_control": None, "n": 0, "by_searches": {}, "by_passages": {}}
    assert memory_tables(figures)[0].rows == [["run", "", "0"]]


def evaluated(name: str, right: str, method: str = "research", control: str | None = None, model: str = "m"):
    """A run whose questions are right ("1") or wrong ("0"), in their order."""
    summary = {"method": method, "dataset": "demo", "served_model": model}
    summary |= {"search_control": control} if control else {}
    return EvaluatedRun(name, summary, {str(number): float(digit) for number, digit in enumerate(right)})


def test_a_run_and_its_control_question_by_question():
    run, control = evaluated("run", "1111100"), evaluated("control", "1000010", control="empty")
    (pair,) = search_or_memory([], [run, control])["pairs"]
    # Four questions are right with search alone and one without: 2 * (C(5, 0) + C(5, 1)) / 2**5.
    assert pair == {
        "run": "run",
        "control_run": "control",
        "n": 7,
        "right_in_both": 1,
        "right_in_run_only": 4,
        "right_in_control_only": 1,
        "right_in_neither": 1,
        "mcnemar_p": pytest.approx(2 * (1 + 5) / 32),
    }
    tables = memory_tables({"runs": {}, "pairs": [pair]})
    assert tables[2].rows == [["run", "control", "7", "1", "4", "1", "1", "0.375"]]


@pytest.mark.parametrize(
    "other",
    [
        evaluated("other", "10"),  # no control
        evaluated("other", "10", model="another", control="empty"),
        evaluated("other", "10", method="naive", control="empty"),
        evaluated("other", "10", method="naive"),
        EvaluatedRun("other", {**evaluated("", "").summary, "dataset": "nq", "search_control": "empty"}, {"0": 1.0}),
        EvaluatedRun("other", {**evaluated("", "").summary, "search_control": "empty"}, {"x": 1.0}),
    ],
)
def test_what_is_no_control_of_a_run_is_not_paired(other: EvaluatedRun):
    assert search_or_memory([], [evaluated("run", "11"), other])["pairs"] == []


def test_a_told_budget_is_a_control_and_two_controls_are_no_pair():
    def told(name: str, control: str | None = None) -> EvaluatedRun:
        made = evaluated(name, "10", control=control)
        return EvaluatedRun(name, {**made.summary, "tell_budget": True}, made.em_by_id)

    runs = [evaluated("run", "11"), evaluated("empty", "10", control="empty"), told("told"), told("both", "empty")]
    pairs = search_or_memory([], runs)["pairs"]
    assert [(pair["run"], pair["control_run"]) for pair in pairs] == [
        ("run", "empty"),
        ("run", "told"),
        ("told", "both"),
    ]
    assert [run.conditions for run in runs] == ["", "control empty", "budget told", "control empty, budget told"]


def test_the_model_s_own_knowledge_is_a_control_of_every_method():
    runs = [evaluated("a", "11"), evaluated("b", "01", "naive"), evaluated("c", "00", "zero-shot")]
    pairs = search_or_memory([], runs)["pairs"]
    assert [(pair["run"], pair["control_run"], pair["mcnemar_p"]) for pair in pairs] == [("a", "c", 0.5), ("b", "c", 1)]


def test_runs_from_before_there_were_controls_have_none():
    assert evaluated("run", "1").control == "none"
