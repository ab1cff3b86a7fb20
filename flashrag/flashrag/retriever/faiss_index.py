"""A faiss index and its file: read, written, set up for searching, spread over GPUs. faiss is loaded on call.

faiss reads its own binary format and runs no code from a file. With `mmap` an index stays on the disk and is
paged in as searches touch it: Flat, HNSW, IVF and scalar-quantized ones alike (IO_FLAG_MMAP_IFC, faiss 1.11 and later).
A mapped file that was cut inside a header of a few bytes can end the process; a card's `index_bytes` shows that.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from flashrag.errors import UserError

if TYPE_CHECKING:
    import faiss


WHOLE_INDEX_BYTES = 64 << 20
GPU_FLAT = ("IndexFlat", "IndexFlatIP", "IndexFlatL2")
GPU_IVF = ("IndexIVFFlat", "IndexIVFPQ", "IndexIVFScalarQuantizer")
GPU_SQ = ("8bit", "8bit_uniform", "4bit", "4bit_uniform", "6bit", "fp16")
GPU_PQ_BITS = 8
# With 96 the tables fill 48 KiB, all that there is.
GPU_PQ_CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
GPU_MOST = 2048  # cells that a search looks at, and passages that it finds
GPU_TYPES = (
    f"Flat, IVF-Flat, IVF-PQ with {', '.join(map(str, GPU_PQ_CODES))} codes of {GPU_PQ_BITS} bits, and IVF with a "
    f"scalar quantizer ({', '.join(GPU_SQ)})"
)
NO_GPU = "set faiss_gpu to false, to search on the processors, or build one of these with --faiss_type"


def is_large(path: Path) -> bool:
    """Whether an index is to be mapped where it need not be in memory. A small one is read whole before it is mapped,
    or instead: to map a file that is cut inside its header can end the process.
    """
    return path.stat().st_size > WHOLE_INDEX_BYTES


def read_index(path: Path, mmap: bool = False, key: str = "index_path", l2: bool = False) -> "faiss.Index":
    """The index at `path`, for inner products; raises UserError naming `key` if the file is not one.

    With `l2` an index of squared distances is read too: it ranks unit vectors alike.
    """
    import faiss

    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except RuntimeError as error:
        problem = str(error).rpartition(": ")[2].strip()
        raise UserError(f"{key}: {path} is not a whole faiss index ({problem}); build the index again") from error
    except MemoryError as error:
        raise UserError(
            f"{key}: {path} ({path.stat().st_size} bytes) does not fit into memory, or is damaged; "
            "set faiss_mmap to true, choose a smaller --faiss_type, or build the index again"
        ) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT and not (l2 and index.metric_type == faiss.METRIC_L2):
        expected = f"inner product ({faiss.METRIC_INNER_PRODUCT})" + (f" or L2 ({faiss.METRIC_L2})" if l2 else "")
        raise UserError(
            f"{key}: the index measures metric {index.metric_type}, expected {expected}; build the index again"
        )
    return index


def write_index(index: "faiss.Index", path: Path) -> None:
    """Write the index's file; raises OSError where the disk is full."""
    import faiss

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # faiss reports a full disk as "… write error in PATH: 15 != 194528 (REASON)"
        raise OSError(str(error).rpartition("failed: ")[2]) from error


def set_search_depth(index: "faiss.Index", nprobe: int | None, ef_search: int | None) -> None:
    """Set how much of an IVF or HNSW index a search looks at; None keeps the file's setting."""
    import faiss

    for key, name, value in (("faiss_nprobe", "nprobe", nprobe), ("faiss_ef_search", "efSearch", ef_search)):
        if value is None:
            continue
        try:
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        except RuntimeError as error:
            kind = type(faiss.downcast_index(index)).__name__
            raise UserError(f"{key}: {value} was given, but the index is a {kind}; remove {key}") from error


def on_gpus(index: "faiss.Index") -> "faiss.Index":
    """The index, its rows spread over all visible GPUs: Flat in float16. Not for several threads at once.

    Raises UserError where `check_on_gpus` does, and where faiss fails, as for an index larger than the GPUs' memory.
    """
    import faiss

    check_on_gpus(index)
    check_gpus("faiss_gpu: true")
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True  # IVF-PQ's tables too, which limits the codes (GPU_PQ_CODES)
    options.shard = True
    try:
        return faiss.index_cpu_to_all_gpus(index, co=options)
    except RuntimeError as error:
        reason = " ".join(str(error).rpartition("failed: ")[2].split())
        raise UserError(
            f"faiss_gpu: true was given, but faiss cannot put the index on the GPUs ({reason}); GPUs search "
            f"{GPU_TYPES}, where they have the memory for it; {NO_GPU}"
        ) from error


def check_on_gpus(index: "faiss.Index") -> None:
    """Raise UserError unless GPUs search an index of this type, dimension and codes. No vector is read.

    Given another one, faiss copies it to the processors or ends the process where there are several GPUs.
    Source: GpuCloner.cpp, GpuIndexIVFPQ.cu, GpuScalarQuantizer.cuh and IndexUtils.cu of faiss 1.15.
    """
    if problem := _gpu_problem(index):
        raise UserError(f"faiss_gpu: true was given, but {problem}; GPUs search {GPU_TYPES}; {NO_GPU}")


def _gpu_problem(index: "faiss.Index") -> str | None:
    import faiss

    index = faiss.downcast_index(index)
    while isinstance(index, (faiss.IndexIDMap, faiss.IndexPreTransform)):
        index = faiss.downcast_index(index.index)
    kind = type(index).__name__
    if kind in GPU_FLAT:
        return None
    if kind not in GPU_IVF:
        return f"the index is a {kind}"
    if (cells := type(faiss.downcast_index(index.quantizer)).__name__) not in GPU_FLAT:
        return f"the cells of the {kind} are found by a {cells}, expected a Flat one"
    if index.nprobe > GPU_MOST:
        return f"a search of the {kind} looks at {index.nprobe} cells, on GPUs at most {GPU_MOST} (faiss_nprobe)"
    if kind == "IndexIVFPQ" and (index.pq.nbits != GPU_PQ_BITS or index.pq.M not in GPU_PQ_CODES):
        return f"the {kind} has {index.pq.M} codes of {index.pq.nbits} bits for {index.d} dimensions"
    if kind == "IndexIVFPQ" and not index.by_residual:
        return f"the {kind} has codes of whole vectors, expected of residuals"
    if kind == "IndexIVFScalarQuantizer" and index.sq.qtype not in [getattr(index.sq, f"QT_{name}") for name in GPU_SQ]:
        return f"the {kind} has {index.code_size} bytes for {index.d} dimensions, of a kind that is not listed"
    return None


def check_gpus(given: str) -> None:
    """Raise UserError, quoting `given`, unless the installed faiss sees a GPU."""
    import faiss

    if not hasattr(faiss, "index_cpu_to_all_gpus") or faiss.get_num_gpus() == 0:
        raise UserError(
            f"{given} was given, but this faiss sees no GPU; start it in an environment with faiss-gpu "
            "(scripts/setup.sh --device gpu --retrieval makes .venv-retrieval), or search on the CPU"
        )
