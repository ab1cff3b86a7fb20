"""The numbers that were published for these methods, to stand beside ours and be told apart from them.

Exact match in percent on the dev sets (accuracy for StrategyQA in the pilot). All over E5-base-v2 and Wikipedia of
December 2018, five passages a search; baselines ran Qwen2.5-7B-Instruct.
"""

from typing import NamedTuple

PILOT = "pilot (published README)"
PAPER = "paper (arXiv 2503.19470)"


class PublishedRow(NamedTuple):
    method: str
    model: str
    source: str
    em_percent: dict[str, float]


def _pilot(method: str, model: str, hotpotqa: float, bamboogle: float, strategyqa: float) -> PublishedRow:
    return PublishedRow(method, model, PILOT, {"hotpotqa": hotpotqa, "bamboogle": bamboogle, "strategyqa": strategyqa})


def _paper(method: str, model: str, hotpotqa: float, wiki2: float, musique: float, bamboogle: float) -> PublishedRow:
    percents = {"hotpotqa": hotpotqa, "2wikimultihopqa": wiki2, "musique": musique, "bamboogle": bamboogle}
    return PublishedRow(method, model, PAPER, percents)


PUBLISHED = (
    _pilot("naive", "7B-Instruct", 31.89, 20.80, 63.53),
    _pilot("flare", "7B-Instruct", 18.97, 12.00, 66.02),
    _pilot("iterretgen", "7B-Instruct", 33.99, 19.22, 64.97),
    _pilot("research", "7B", 37.51, 35.20, 65.89),
    _paper("naive", "7B-Instruct", 31.90, 25.78, 6.21, 20.80),
    _paper("iterretgen", "7B-Instruct", 34.36, 27.92, 8.69, 21.60),
    _paper("ircot", "7B-Instruct", 30.33, 21.57, 6.99, 24.80),
    _paper("research", "7B", 40.57, 44.67, 21.68, 43.20),
    _paper("research", "7B-Instruct", 43.52, 47.59, 22.30, 42.40),
    _paper("research", "32B-Instruct", 46.73, 44.90, 26.40, 56.80),
)
