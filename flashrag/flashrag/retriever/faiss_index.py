"""A faiss index for searching: read from its file, set up, spread over GPUs. Importing this module loads faiss.

faiss reads its own binary format and runs nothing that a file holds. With `mmap` an index stays on the disk and is
paged in as searches touch it: Flat, HNSW, IVF and scalar-quantized ones alike (IO_FLAG_MMAP_IFC, faiss 1.11 and later).
A mapped file that was cut inside a header of a few bytes can end the process; a card's `index_bytes` finds that before.
"""

from pathlib import Path

import faiss

from flashrag.errors import UserError


def read_index(path: Path, mmap: bool = False) -> faiss.Index:
    """The index at `path`, for inner products; raises UserError where it is none."""
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except RuntimeError as error:
        problem = str(error).rpartition(": ")[2].strip()
        raise UserError(f"index_path: {path} is no whole faiss index ({problem}); build the index again") from error
    except MemoryError as error:
        raise UserError(
            f"index_path: {path} ({path.stat().st_size} bytes) does not fit into memory, or is damaged; "
            "set faiss_mmap to true, choose a smaller --faiss_type, or build the index again"
        ) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise UserError(
            f"index_path: the index measures metric {index.metric_type}, expected inner product "
            f"({faiss.METRIC_INNER_PRODUCT}); build the index again"
        )
    return index


def set_search_depth(index: faiss.Index, nprobe: int | None, ef_search: int | None) -> None:
    """Set how much of an IVF or HNSW index a search looks at; None leaves what the file says."""
    for key, name, value in (("faiss_nprobe", "nprobe", nprobe), ("faiss_ef_search", "efSearch", ef_search)):
        if value is None:
            continue
        try:
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        except RuntimeError as error:
            kind = type(faiss.downcast_index(index)).__name__
            raise UserError(f"{key}: {value} was given, but the index is a {kind}; remove {key}") from error


def on_gpus(index: faiss.Index) -> faiss.Index:
    """The index in float16, its rows spread over all visible GPUs. Not for several threads at once."""
    if not hasattr(faiss, "index_cpu_to_all_gpus") or faiss.get_num_gpus() == 0:
        raise UserError(
            "faiss_gpu: true was given, but this faiss sees no GPU; install faiss-gpu, or set faiss_gpu to false"
        )
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, co=options)
