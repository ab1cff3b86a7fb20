import csv

import pytest

from evaluation.report.plots import curve_plots
from evaluation.report.tables import (
    PUBLISHED,
    EvaluatedRun,
    Table,
    as_html,
    as_markdown,
    comparison_table,
    curve_table,
    curves,
    figures_table,
    overview_table,
)


def run(name, method, dataset, mean, em_by_id=None, **metrics):
    summary = {
        "method": method,
        "dataset": dataset,
        "n": 4,
        "n_failed": 1,
        "metrics": {"em": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 4}, **metrics},
        "usage": {"searches": 1.5},
        "prompt": {"name": "data/prompts/flashrag.yaml", "apply_chat": True, "sha256": "0123456789abcdef"},
    }
    return EvaluatedRun(name, summary, em_by_id or {})


def test_methods_stand_against_datasets_with_intervals_and_published_rows_last():
    table = overview_table([run("a", "research", "hotpotqa", 0.4), run("b", "naive", "bamboogle", 0.25)])
    assert table.header == ["method", "hotpotqa", "bamboogle"]
    assert table.rows[0] == ["research", "40.00 [30.00, 50.00]", ""]
    assert table.rows[1] == ["naive", "", "25.00 [15.00, 35.00]"]
    assert table.published == frozenset(range(2, len(table.rows)))
    assert ["research, 7B: published, pilot (published README)", "37.51", "35.20"] in table.rows
    assert not any("flare" in row[0] for row in table.rows)


SEVEN = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
# The paper prints the average of each row, too (arXiv 2503.09516, table 2), in percent.
AVERAGES = {
    ("zero-shot", "7B-Instruct"): 18.1,
    ("naive", "7B-Instruct"): 30.4,
    ("search-r1", "7B"): 43.1,
    ("search-r1", "7B-Instruct"): 38.5,
    ("search-r1", "3B"): 30.3,
    ("search-r1", "3B-Instruct"): 32.5,
}


def test_the_published_rows_of_the_seven_sets_have_the_published_averages():
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if "2503.09516" in row["source"]]
    means = {(row["method"], row["model"]): sum(float(row[name]) for name in SEVEN) / 7 for row in rows}
    assert means == {key: pytest.approx(average, abs=0.051) for key, average in AVERAGES.items()}


def test_the_seven_sets_stand_beside_their_published_rows():
    table = overview_table([run(name, "search-r1", name, 0.4) for name in SEVEN])
    assert table.header == ["method", *SEVEN]
    theirs = [table.rows[number] for number in sorted(table.published)]
    source = "paper (arXiv 2503.09516, table 2, as others quote it)"
    figures = ["48.0", "63.8", "45.7", "43.3", "38.2", "19.6", "43.2"]
    assert theirs[0] == [f"search-r1, 7B: published, {source}", *figures]
    assert len(theirs) == 4


def test_an_unpublished_dataset_gets_no_published_row():
    assert not overview_table([run("a", "research", "demo", 0.4)]).published


def test_strategyqa_is_told_by_yes_no_accuracy():
    table = overview_table([run("a", "naive", "strategyqa", 0.1, yes_no_acc={"mean": 0.6, "low": 0.5, "high": 0.7})])
    assert table.rows[0][1] == "60.00 [50.00, 70.00]"


def test_every_figure_of_a_run_is_in_its_row():
    table = figures_table([run("a", "naive", "demo", 0.5, f1={"mean": 0.75, "low": None, "high": None}, acc=None)])
    assert table.header == ["run", "prompt", "questions", "failed", "em %", "f1 %", "acc %", "searches"]
    prompt = "data/prompts/flashrag.yaml (in the chat template, sha256 0123456789ab)"
    assert table.rows == [["a", prompt, "4", "1", "50.00 [40.00, 60.00]", "75.00", "", "1.5"]]


def at_step(step: int, note: str | None = None) -> EvaluatedRun:
    made = run(f"s{step}", "research", "demo", step / 100, f1={"mean": 0.5, "low": None, "high": None})
    return EvaluatedRun(made.name, {**made.summary, "save_note": f"{note}_step_{step}" if note else f"step_{step}"}, {})


def test_runs_whose_notes_name_a_step_are_a_curve():
    other = run("a", "research", "demo", 0.5)
    runs = [at_step(100), at_step(20), other, at_step(5, "seed_1")]
    assert {name: [each.step for each in found] for name, found in curves(runs).items()} == {
        "demo research": [20, 100],
        "demo research seed_1": [5],
    }
    table = curve_table(runs)
    assert table.header == ["evaluation", "step", "questions", "em %", "f1 %", "searches"]
    assert table.rows[:2] == [
        ["demo research", "20", "4", "20.00 [10.00, 30.00]", "50.00", "1.5"],
        ["demo research", "100", "4", "100.00 [90.00, 110.00]", "50.00", "1.5"],
    ]
    assert curve_table([other]).rows == []
    (plot,) = curve_plots(curves(runs))
    assert "demo research seed_1" in plot.svg
    assert curve_plots({}) == []


def test_runs_that_asked_otherwise_are_other_curves():
    def changed(**values: object) -> EvaluatedRun:
        made = at_step(20)
        return EvaluatedRun(made.name, {**made.summary, **values}, {})

    runs = [at_step(20), changed(split="dev"), changed(split="test"), changed(search_control="empty")]
    runs.append(changed(tell_budget=True))
    names = ["demo research", "demo dev research", "demo test research", "demo research control empty"]
    names.append("demo research budget told")
    assert list(curves(runs)) == names


def test_a_curve_without_exact_match_is_a_table_alone():
    made = at_step(20)
    f1_alone = EvaluatedRun(made.name, {**made.summary, "metrics": {"f1": made.summary["metrics"]["f1"]}}, {})
    assert curve_table([f1_alone]).rows == [["demo research", "20", "4", "50.00", "1.5"]]
    assert curve_plots(curves([f1_alone])) == []


def test_runs_are_compared_on_the_questions_that_they_share():
    first = run("a", "naive", "demo", 0.0, {str(i): 0.0 for i in range(20)})
    second = run("b", "research", "demo", 1.0, {str(i): 1.0 for i in range(5, 25)})
    other = run("c", "naive", "hotpotqa", 1.0, {str(i): 1.0 for i in range(20)})
    assert comparison_table([first, second, other]).rows == [
        ["a", "b", "15", "+100.00 [100.00, 100.00]", "< 0.001"]
    ]  # 2 of the 2**15 sign patterns are as extreme: p = 0.00006


def test_the_two_renderings_escape_what_would_break_them():
    table = Table("t <1>", ["a|b"], [["<script>"], ["x"]], frozenset({1}))
    assert as_markdown(table) == "**t <1>**\n\n| a\\|b |\n| --- |\n| <script> |\n| x |"
    assert as_html(table) == (
        "<h2>t &lt;1&gt;</h2><table><thead><tr><th>a|b</th></tr></thead><tbody><tr><td>&lt;script&gt;</td></tr>"
        '<tr class="published"><td>x</td></tr></tbody></table>'
    )
    assert as_html(Table("empty", ["a"], [])) == as_markdown(Table("empty", ["a"], [])) == ""
