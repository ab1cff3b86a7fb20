"""From vectors on disk to a faiss index file.

Flat, the type that is as large as its vectors, is written block by block without ever being in memory. The others are
built in memory (SQ8 a quarter of the vectors, IVF-PQ a sixteenth, HNSW and IVF-Flat more than all) after training on a
seeded sample. faiss can memory-map every file. Source: the layout that faiss's own writer gives IndexFlat.
"""

import struct
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from tqdm import tqdm

from flashrag.errors import UserError
from flashrag.retriever.build.embeddings import SAMPLE_SEED, Embeddings
from flashrag.retriever.build.faiss_types import FaissType, IndexPlan, new_index, parameters, training_size
from flashrag.retriever.faiss_index import check_gpus, write_index

FLAT_COUNT_OFFSET = 8  # after the four letters of the type and the dimension as int32


def build_index(path: Path, plan: IndexPlan, embeddings: Embeddings, train_on_gpu: bool = False) -> dict[str, Any]:
    """Write the index of all the vectors to `path`; returns its parameters for the card.

    Raises OSError if the disk is full, UserError if the vectors are too few to train on.
    """
    index = new_index(plan)
    values = parameters(index, plan)
    if plan.factory == FaissType.FLAT:
        _write_flat(path, embeddings)
        return values
    size = training_size(index)
    if size:
        sample = embeddings.sample(size)
        _train(index, sample, plan, train_on_gpu)
        values |= {"trained_on": len(sample), "training_seed": SAMPLE_SEED}
        del sample
    for block in _with_progress(embeddings):
        index.add(block)
    write_index(index, path)
    return values


def _write_flat(path: Path, embeddings: Embeddings) -> None:
    """Write the same bytes as faiss for an IndexFlat of these vectors."""
    count, dimension = embeddings.count, embeddings.dimension
    one = faiss.IndexFlatIP(dimension)
    one.add(np.zeros((1, dimension), dtype=np.float32))
    header = bytearray(faiss.serialize_index(one)[: -4 * dimension])
    numbers = ((FLAT_COUNT_OFFSET, 1, count), (len(header) - 8, dimension, count * dimension))
    for offset, written, wanted in numbers:
        assert struct.unpack_from("<q", header, offset)[0] == written, "faiss has changed the layout of IndexFlat"
        struct.pack_into("<q", header, offset, wanted)
    with path.open("wb") as file:
        file.write(header)
        for block in _with_progress(embeddings):
            file.write(block.data)


def _train(index: faiss.Index, sample: Any, plan: IndexPlan, on_gpu: bool) -> None:
    """Train the index; with `on_gpu` the first GPU finds the cells, which is nearly all of the work."""
    ivf = faiss.try_extract_index_ivf(index) if on_gpu else None
    if on_gpu:
        check_gpus("--faiss_gpu")
    try:
        if ivf is not None:  # faiss's replicas on several GPUs would each do the whole of it
            cells = faiss.index_cpu_to_gpus_list(faiss.IndexFlat(ivf.d, ivf.metric_type), gpus=[0])
            ivf.clustering_index = cells
            cells.this.own(True)  # the setter takes the ownership away
        index.train(sample)
    except RuntimeError as error:
        reason = str(error).rpartition("failed: ")[2]
        raise UserError(
            f"--faiss_type {plan.faiss_type!r} cannot be trained on {len(sample)} passages ({reason}); use Flat"
        ) from error
    finally:
        if ivf is not None:
            ivf.clustering_index = None


def _with_progress(embeddings: Embeddings) -> Any:
    with tqdm(total=embeddings.count, unit=" passages", desc="index", smoothing=0.05) as bar:
        for block in embeddings.blocks():
            yield block
            bar.update(len(block))
