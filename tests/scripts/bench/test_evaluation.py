from pathlib import Path

from scripts.bench.evaluation import Pass, main, report


def test_the_figures_are_medians_and_their_ratios(capsys):
    figures = report(
        {
            "ours": [Pass(10.0, 500, 0), Pass(20.0, 500, 1), Pass(12.5, 500, 0)],  # 50, 25 and 40 a second
            "sequential": [Pass(15.0, 60, 0)],  # 4 a second
            "limit": [Pass(10.0, 500, 0)],  # 50 a second
        }
    )
    assert figures == {
        "ours_over_sequential": 10.0,
        "ours_over_limit": 0.8,
        "ours_per_s": 40.0,
        "sequential_per_s": 4.0,
        "limit_per_s": 50.0,
        "failed": 1,
    }
    assert "sequential" in capsys.readouterr().out


def test_a_folder_without_a_demo_is_refused(tmp_path: Path, capsys):
    assert main(["--demo_dir", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
