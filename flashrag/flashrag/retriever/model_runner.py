"""Runs a sentence-transformers model from any number of threads at once. Importing this module loads torch.

On GPUs there is one copy per device, and the batches of all callers share the devices, one on each at a time. On the
CPU a batch is cut into small forward passes of one core each, which run side by side, at most one for each core
whatever the number of models and of callers: a small model gains little from several cores inside one pass, and OpenMP
threads that wait for one another while other threads want the cores make it ten times slower. Padding costs computing
time, so inputs of similar length share a pass; all passes cost about the same, so that the cores finish together.
Only one thread tokenizes at a time: a fast tokenizer keeps truncation and padding as state, and raises "Already
borrowed" when two threads set it. Tokenizing takes a hundredth of the time of the forward passes.
Does not cover: the models (encoder.py, reranker.py).
"""

import bisect
import functools
import math
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from sentence_transformers.util import batch_to_device

from flashrag.errors import UserError
from flashrag.retriever.encoder_folder import most_tokens
from flashrag.retriever.loading import FORWARD_THREADS_VARIABLE

CPU = "cpu"
# Measured with a small encoder: the fixed cost of a pass, in tokens; and the tokens that fit the caches.
TOKENS_FOR_A_CPU_PASS = 40
MAX_CPU_PASS_TOKENS = 480


# The errors that transformers raises for a folder that is damaged, incomplete or of an unknown kind.
LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, SafetensorError)


class ModelRunner:
    """`load(device=…)` gives the model in `folder`, `read(outputs)` one tensor row per input.

    `max_length` is in tokens and capped at the model's own limit. A folder without a whole model is a UserError about
    `key`.
    """

    def __init__(
        self,
        load: Callable[..., Any],
        read: Callable[[dict[str, Any]], torch.Tensor],
        folder: Path,
        max_length: int,
        fp16: bool,
        key: str,
    ) -> None:
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        self._on_gpus = bool(gpus)
        self._pool = ThreadPoolExecutor(len(gpus), "forward") if gpus else cpu_pool()
        try:
            self._models = {device: load(device=device).eval() for device in gpus or [CPU]}
        except LOAD_ERRORS as error:
            raise UserError(f"{key}: the model in {folder} cannot be loaded ({_reason(error)})") from error
        self.model = next(iter(self._models.values()))
        self.device_count = len(self._models)
        self._read = read
        self._tokenizing = threading.Lock()
        self._free: queue.SimpleQueue[str] = queue.SimpleQueue()  # a GPU takes one pass at a time, the CPU many
        for device, model in self._models.items():
            for _ in range(1 if self._on_gpus else cpu_threads()):
                self._free.put(device)
            if fp16 and self._on_gpus:  # on a CPU half precision is slower and less exact
                model.half()
        self._most_tokens = most_tokens(folder)
        self.cut_at(max_length)

    def cut_at(self, max_length: int) -> None:
        """Cut off inputs at so many tokens, or at the model's own limit where that is less."""
        for model in self._models.values():
            model.max_seq_length = min(max_length, self._most_tokens or max_length)

    def run(self, inputs: Sequence[Any], batch_size: int) -> np.ndarray:
        """float32, one row per input, in the order of the inputs. Other inputs change a row by rounding at most."""
        with self._tokenizing:
            features = self.model.preprocess(inputs)
        lengths = features["attention_mask"].sum(dim=1).tolist()
        batches = by_length(lengths, 1, batch_size) if self._on_gpus else cpu_passes(lengths, batch_size)
        features_of_batches = (rows_of(features, batch) for batch in batches)
        rows = np.concatenate(list(self._pool.map(self._forward, features_of_batches)))
        result = np.empty_like(rows)
        result[np.concatenate(batches)] = rows
        return result

    def _forward(self, features: dict[str, Any]) -> np.ndarray:
        device = self._free.get()
        try:
            with torch.inference_mode():
                outputs = self._models[device](batch_to_device(features, device))
                return self._read(outputs).float().cpu().numpy()
        finally:
            self._free.put(device)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "custom code" in text:
        return "it comes with Python code of its own; set trust_remote_code to true if you trust it"
    return f"{text[:300]}; download it again"


@functools.cache
def cpu_threads() -> int:
    """The number of forward passes that this process runs at a time."""
    return int(os.environ.get(FORWARD_THREADS_VARIABLE) or torch.get_num_threads())


@functools.cache
def cpu_pool() -> ThreadPoolExecutor:
    """The threads that run forward passes on the CPU, one pool for the process. Other threads keep torch's setting."""
    return ThreadPoolExecutor(cpu_threads(), "forward", initializer=torch.set_num_threads, initargs=(1,))


def cpu_passes(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The positions of `lengths` in passes: the number of passes for each core that minimises padding and overhead."""

    def cost(passes: list[list[int]]) -> int:
        return sum(TOKENS_FOR_A_CPU_PASS + len(positions) * lengths[positions[0]] for positions in passes)

    def cut(rounds: int) -> list[list[int]]:
        return by_length(lengths, rounds * cpu_threads(), size)

    rounds = max(1, sum(lengths) // (MAX_CPU_PASS_TOKENS * cpu_threads()))
    best, other = cut(rounds), cut(rounds + 1)
    while cost(other) < cost(best):
        rounds += 1
        best, other = other, cut(rounds + 1)
    return best


def by_length(lengths: Sequence[int], count: int, size: int) -> list[list[int]]:
    """The positions of `lengths`, longest first, in `count` batches, or in more where a batch would exceed `size`.

    The costs of the batches are as equal as possible. A batch costs its number of inputs times the longest length,
    because the others are padded.

    >>> by_length([30, 10, 20, 10, 10], count=2, size=8)
    [[0, 2], [1, 3, 4]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    count = max(count, math.ceil(len(order) / size))

    def cut(cost: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for position in order:
            last = batches[-1] if batches else []
            if last and len(last) < size and (len(last) + 1) * lengths[last[0]] <= cost:
                last.append(position)
            else:
                batches.append([position])
        return batches

    costs = range(len(order) * max(lengths, default=0) + 1)
    return cut(bisect.bisect_left(costs, True, key=lambda cost: len(cut(cost)) <= count))


def rows_of(features: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The features of some inputs, without the columns on either side in which all of them are padding.

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
