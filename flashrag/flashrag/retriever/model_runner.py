"""Runs a sentence-transformers model from any number of threads at once. Importing this module loads torch.

On GPUs there is one copy a device, and callers take turns on them. On the CPU a batch is cut into small forward passes
of one core each, which run side by side, at most one for each core whatever the number of models and of callers: a
small model gains little from several cores inside one pass, and OpenMP threads that wait for one another while other
threads want the cores cost it tenfold. Inputs of about as many tokens share a pass: what a pass pads, it computes.
Only tokenizing is one at a time: a fast tokenizer keeps truncation and padding as state, and raises "Already borrowed"
when two threads set it. It takes a hundredth of the time of the forward passes.
Does not cover: what the model is (encoder.py, reranker.py).
"""

import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import batch_to_device

from flashrag.retriever import FORWARD_THREADS_VARIABLE

CPU = "cpu"
INPUTS_PER_CPU_FORWARD = 8  # more gain nothing on one core and cost padding


class ModelRunner:
    """`load(device)` gives the model on a device, `read(outputs)` one tensor row per input."""

    def __init__(self, load: Callable[[str], Any], read: Callable[[dict[str, Any]], torch.Tensor], fp16: bool) -> None:
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        self._on_gpus = bool(gpus)
        self._models = {device: load(device).eval() for device in gpus or [CPU]}
        self.model = next(iter(self._models.values()))
        self._read = read
        self._tokenizing = threading.Lock()
        self._idle_gpus: queue.SimpleQueue[str] = queue.SimpleQueue()
        for gpu in gpus:
            self._idle_gpus.put(gpu)
            if fp16:  # on a CPU half precision is slower and less exact
                self._models[gpu].half()

    def run(self, inputs: Sequence[Any], batch_size: int) -> np.ndarray:
        """float32, a row per input in their order; what the others are changes a row by rounding at most."""
        with self._tokenizing:
            features = self.model.preprocess(inputs)
        lengths = features["attention_mask"].sum(dim=1).tolist()
        batches = by_length(lengths, batch_size if self._on_gpus else cpu_batch_size(len(inputs), batch_size))
        features_of_batches = (rows_of(features, batch) for batch in batches)
        outputs = (map if self._on_gpus else cpu_pool().map)(self._forward, features_of_batches)
        rows = np.concatenate(list(outputs))
        result = np.empty_like(rows)
        result[np.concatenate(batches)] = rows
        return result

    def _forward(self, features: dict[str, Any]) -> np.ndarray:
        with self._turn() as device, torch.inference_mode():
            outputs = self._models[device](batch_to_device(features, device))
            return self._read(outputs).float().cpu().numpy()

    @contextmanager
    def _turn(self) -> Iterator[str]:
        """A device: a GPU to oneself, or the CPU together with everyone."""
        if not self._on_gpus:
            yield CPU
            return
        gpu = self._idle_gpus.get()
        try:
            yield gpu
        finally:
            self._idle_gpus.put(gpu)


@functools.cache
def cpu_threads() -> int:
    """Forward passes at a time, whoever asks for them."""
    return int(os.environ.get(FORWARD_THREADS_VARIABLE) or torch.get_num_threads())


@functools.cache
def cpu_pool() -> ThreadPoolExecutor:
    """The threads that run forward passes on the CPU, one pool for the process. Elsewhere torch keeps its threads."""
    return ThreadPoolExecutor(cpu_threads(), "forward", initializer=torch.set_num_threads, initargs=(1,))


def cpu_batch_size(count: int, limit: int) -> int:
    """Inputs a pass: few, and so few that every core has a part."""
    return max(1, min(limit, INPUTS_PER_CPU_FORWARD, -(-count // cpu_threads())))


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The positions of `lengths`, longest first, in batches of up to `size`.

    >>> by_length([30, 10, 20], 2)
    [[0, 2], [1]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [order[start : start + size] for start in range(0, len(order), size)]


def rows_of(features: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The features of some inputs, without the columns in which all of them are padding, on whichever side.

    >>> tokens = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0], [1, 2, 3, 4]])
    >>> rows_of({"input_ids": tokens, "attention_mask": tokens > 0}, [0, 1])["input_ids"].tolist()
    [[5, 6, 0], [7, 8, 9]]
    """
    mask = features["attention_mask"]
    used = mask[rows].any(dim=0).nonzero().flatten().tolist() or [0]  # inputs without a token keep one column
    columns = slice(used[0], used[-1] + 1)
    return {
        name: value[rows, columns] if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape else value
        for name, value in features.items()
    }
