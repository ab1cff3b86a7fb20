"""The limit: encoder and index in one process, no server. Thread settings are what this process finds, as the server's.

Importing this module is cheap; the retriever is loaded where a `Direct` is made.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flashrag.config import read_yaml_mapping
from flashrag.retriever import load_retriever


class Direct:
    """Times the retriever's own calls; one lives in a process of its own."""

    def __init__(self, config: Path) -> None:
        self._retriever = load_retriever(read_yaml_mapping(config))

    def call_ms(self, questions: Sequence[str], batch_size: int, top_n: int) -> np.ndarray:
        """The time of each call when `questions` are ranked `batch_size` at a time."""
        times = []
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            started = time.perf_counter()
            self._retriever.rank(batch, top_n)
            times.append(1000 * (time.perf_counter() - started))
        return np.array(times)

    def cpu_s(self) -> float:
        """Processor time of this process so far."""
        return time.process_time()
