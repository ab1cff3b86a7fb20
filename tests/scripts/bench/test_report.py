"""The figures of a run, computed by hand."""

import json

import pytest

from scripts.bench.comparison import Cost, Rung, SingleClient, Throughput, best_batch
from scripts.bench.overload import Overload
from scripts.bench.report import Report, print_report

THROUGHPUT = Throughput(
    raw={8: [90, 110, 100], 64: [200, 100, 250]},
    direct={8: [320, 100, 250], 64: [200, 180, 350]},
    ours=[160, 90, 175],
    original=[20, 10, 25],
    blocking=[40, 20, 25],
)
OVERLOAD = Overload(
    capacity_per_s=200,
    offered_per_s=400,
    status={0: 1, 200: 900, 429: 90, 500: 6, 504: 3},
    accepted_per_s=190,
    accepted_p99_ms=1500,
    queue_limit=100,
    health_p99_ms=12,
    health_failed=0,
    memory_mib=[100, 101, 102, 103, 110, 111],
    kept={},
)


def report(**changes):
    rungs = [Rung(1, [9, 8], [10, 10], [100, 100], [90, 90]), Rung(8, [30, 20], [80, 90], [300, 300], [90, 90])]
    values = {
        "throughput": THROUGHPUT,
        "cost": Cost(4.0, 4.5, 0.2),
        "single": SingleClient([10, 8, 10], [8, 8, 5], [11, 10, 10.5], 0.6),
        "ladder": rungs,
        "overload": OVERLOAD,
        "memory_mib": {1: [400, 410], 4: [440, 451]},
        "answers_checked": 5,
        "answers_wrong": [],
    }
    return Report(**{**values, **changes})


def test_ratios_are_medians_of_the_rounds_ratios():
    figures = report().figures
    assert best_batch(THROUGHPUT.raw) == 64  # median 200 against 100
    assert best_batch(THROUGHPUT.direct) == 8  # median 250 against 200
    assert figures["server_over_limit"] == pytest.approx(0.8)  # 160/200, 90/100, 175/250: 0.8, 0.9, 0.7
    assert figures["server_over_limit_with_our_encoder"] == pytest.approx(0.7)  # 160/320, 90/100, 175/250
    assert figures["server_over_blocking"] == pytest.approx(8)  # 8, 9, 7
    assert figures["server_over_blocking_with_our_encoder"] == pytest.approx(4.5)  # 4, 4.5, 7
    assert figures["single_client_latency_ratio"] == pytest.approx(1.1)  # 1.1, 1.25, 1.05
    assert figures["single_client_latency_ratio_with_our_encoder"] == pytest.approx(1.375)  # 1.375, 1.25, 2.1
    assert figures["rss_4_over_1"] == pytest.approx(1.1)


def test_overload_figures():
    figures = report().figures
    assert figures["overload_5xx"] == 9
    assert figures["overload_p99_bound_ms"] == 1000  # twice 100 waiting at 200 a second
    assert figures["overload_memory_growth"] == pytest.approx(110.5 / 102.5)  # thirds of two samples each
    # Least squares over 0 … 3 s of 102, 103, 110, 111: (-1.5*-4.5 + -0.5*-3.5 + 0.5*3.5 + 1.5*4.5) / 5 a second.
    assert OVERLOAD.memory_slope_mib_per_min == pytest.approx(60 * 17 / 5)


def test_one_client_count_with_a_higher_p99_is_enough_to_miss():
    assert report().figures["p99_lower_at_every_client_count"] is True
    missed = report(ladder=[Rung(1, [11, 12, 8], [10, 10, 10], [1, 1, 1], [1, 1, 1])])
    assert missed.figures["p99_lower_at_every_client_count"] is False


def test_the_last_line_is_json_and_problems_are_shown(capsys):
    print_report(report(answers_wrong=["'q': a passage twice"]))
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["answers_wrong"] == 1
    assert "wrong answer: 'q': a passage twice" in lines
    assert any("server / limit" in line and "0.8 (0.7–0.9)" in line for line in lines)
