import json
from pathlib import Path

from scripts.bench.evaluation import TARGETS, figures, main
from scripts.bench.report import print_report


def test_the_figures_are_medians_and_the_rounds_ratios(capsys):
    per_s = {"ours": [50.0, 25.0, 40.0], "limit": [50.0, 50.0, 50.0], "sequential": [4.0, 5.0, 4.0]}
    print_report(figures(per_s, failed=1), TARGETS)
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {
        "ours_over_sequential": 10.0,  # 12.5, 5, 10
        "ours_over_limit": 0.8,  # 1, 0.5, 0.8
        "ours_per_s": 40.0,
        "sequential_per_s": 4.0,
        "limit_per_s": 50.0,
        "failed": 1,
    }
    assert "| ours_over_sequential | 10 (5–12.5) | >= 8 |" in table


def test_a_folder_without_a_demo_is_refused(tmp_path: Path, capsys):
    assert main(["--demo_dir", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
