"""The benchmark's command: refusals, figures computed by hand, and one quick run over a real index."""

import json

import numpy as np
import pytest

from scripts.bench.retrieval import PLANS, best_batch, figures, main

pytestmark = pytest.mark.timeout(600)

RAW = {
    "throughput": {
        "raw": {8: [90, 110, 100], 64: [200, 100, 250]},
        "direct": {8: [320, 100, 250], 64: [200, 180, 350]},
        "ours": [160, 90, 175],
        "original": [20, 10, 25],
        "blocking": [40, 20, 25],
    },
    "cost": {"direct_ms": 4.0, "server_ms": 4.5, "load_ms": 0.2},
    "single_client": {"raw_ms": [10, 8, 10], "direct_ms": [8, 8, 5], "ours_ms": [11, 10, 10.5], "http_floor_ms": 0.6},
    "ladder": [
        {"clients": 1, "ours_p99_ms": [9, 8], "blocking_p99_ms": [10, 10]},
        {"clients": 8, "ours_p99_ms": [30, 20], "blocking_p99_ms": [80, 90]},
    ],
    "overload": {
        "capacity_per_s": 200,
        "status": {0: 1, 200: 900, 429: 90, 500: 6, 504: 3},
        "accepted_p99_ms": 1500,
        "queue_limit": 100,
        "health_p99_ms": 12,
        "memory_mib": [100, 101, 102, 103, 110, 111],
    },
    "memory_mib": {1: [400, 410], 4: [440, 451]},
}


def test_a_quick_run_has_the_sizes_of_a_full_one():
    assert PLANS.quick.keys() == PLANS.full.keys()
    assert PLANS.targets.keys() <= figures(RAW, 5, 0).keys()


def medians() -> dict[str, float]:
    found = figures(RAW, answers_checked=5, answers_wrong=0)
    return {name: float(np.median(value)) for name, value in found.items() if name != "raw"}


def test_ratios_are_medians_of_the_rounds_ratios():
    found = medians()
    assert best_batch(RAW["throughput"]["raw"]) == 64  # median 200 against 100
    assert best_batch(RAW["throughput"]["direct"]) == 8  # median 250 against 200
    assert found["server_over_limit"] == pytest.approx(0.8)  # 160/200, 90/100, 175/250: 0.8, 0.9, 0.7
    assert found["server_over_limit_with_our_encoder"] == pytest.approx(0.7)  # 160/320, 90/100, 175/250
    assert found["server_over_blocking"] == pytest.approx(8)  # 8, 9, 7
    assert found["server_over_blocking_with_our_encoder"] == pytest.approx(4.5)  # 4, 4.5, 7
    assert found["single_client_latency_ratio"] == pytest.approx(1.1)  # 1.1, 1.25, 1.05
    assert found["single_client_latency_ratio_with_our_encoder"] == pytest.approx(1.375)  # 1.375, 1.25, 2.1
    assert found["rss_4_over_1"] == pytest.approx(1.1)


def test_overload_figures():
    found = medians()
    assert found["overload_5xx"] == 9
    assert found["overload_p99_bound_ms"] == 1000  # twice 100 waiting at 200 a second
    assert found["overload_memory_growth"] == pytest.approx(110.5 / 102.5)  # thirds of two samples each


def test_one_client_count_with_a_higher_p99_is_enough_to_miss():
    assert figures(RAW, 5, 0)["p99_lower_at_every_client_count"] is True
    missed = {"clients": 2, "ours_p99_ms": [11, 12, 8], "blocking_p99_ms": [10, 10, 10]}
    assert figures({**RAW, "ladder": [*RAW["ladder"], missed]}, 5, 0)["p99_lower_at_every_client_count"] is False


def test_missing_flags_and_files_are_refused(tmp_path, capsys):
    assert main([]) == 2
    flags = ["--index_path", "/no/minilm.index", "--corpus_path", "/no/corpus.jsonl"]
    assert main([*flags, "--questions", "/no/questions.jsonl"]) == 2
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "why?"}\n')
    assert main([*flags, "--questions", str(questions)]) == 2
    refusals = capsys.readouterr().err.splitlines()[-2:]
    assert refusals[0].startswith("error: /no/questions.jsonl is not a file")
    assert refusals[1].startswith("error: index_path: nothing at /no/minilm.index")


@pytest.mark.slow
def test_a_quick_run_ends_with_its_figures(dense_site, capsys):
    assert main([*dense_site.flags, "--quick"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures.keys() >= {
        "server_over_limit",
        "server_over_blocking",
        "single_client_latency_ratio",
        "overload_5xx",
        "overload_p99_ms",
        "health_p99_ms",
        "rss_4_over_1",
    }
    assert figures["answers_checked"] > 0
    assert figures["answers_wrong"] == 0
    assert figures["overload_5xx"] == 0
