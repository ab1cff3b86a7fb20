import json

import numpy as np

from scripts.bench.report import paired_rounds, print_report


def test_every_way_does_each_round_s_work_and_the_order_is_reversed():
    done = []

    def way(name):
        return lambda work: done.append((name, work)) or work * 10

    assert paired_rounds("title", [1, 2], {"a": way("a"), "b": way("b")}) == {"a": [10, 20], "b": [10, 20]}
    assert done == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]


def test_the_last_line_holds_medians_and_the_table_their_spread(capsys):
    figures = {"ratio": np.divide([160, 90, 175], [200, 100, 250]), "failed": 0, "raw": {"ours": [1.0, 2.0]}}
    print_report(figures, {"ratio": ">= 0.80"}, limit=[3, 5, 4])
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {"ratio": 0.8, "failed": 0, "raw": {"ours": [1.0, 2.0]}}
    assert table[2:] == [
        "| ratio | 0.8 (0.7–0.9) | >= 0.80 |",
        "| failed | 0 |  |",
        "| raw ours | 1.5 (1–2) |  |",
        "| limit | 4 (3–5) |  |",
    ]
