"""The faiss index that a `--faiss_type` names, and its set-up for a corpus of a given size.

Names: Flat, HNSW, IVF-Flat, IVF-PQ and SQ8, sized by the rules below, or any text that faiss's index_factory reads
(`IVF4096,PQ64`, `HNSW64`, …). All measure inner products. The search parameters (nprobe, efSearch) are written into
the index file, so that every reader searches with them. Source: the guidelines in faiss's wiki; the sizes that
are ours were measured (docs/indexes.md).
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from flashrag.errors import UserError

if TYPE_CHECKING:
    import faiss


class FaissType(StrEnum):
    FLAT = "Flat"
    HNSW = "HNSW"
    IVF_FLAT = "IVF-Flat"
    IVF_PQ = "IVF-PQ"
    SQ8 = "SQ8"


HNSW_NEIGHBOURS = 32
HNSW_EF_CONSTRUCTION = 100
HNSW_EF_SEARCH = 128
PQ_DIMENSIONS_PER_CODE = 4  # encoded in one byte
PQ_CENTROIDS = 256
MIN_TRAINING_PER_CENTROID = 39  # faiss warns below this
TRAINING_PER_CENTROID = 64  # of cells and of codes; faiss takes up to 256, in four times the time
MIN_TRAINING_SAMPLE = 65_536


def faiss_type_name(text: str) -> str:
    """The name as it stands in the index's file name; the five names may be given in any case."""
    return next((str(known) for known in FaissType if known.lower() == text.lower()), text)


@dataclass(frozen=True)
class IndexPlan:
    """`factory` is the index_factory text; `note` says where too few passages changed the usual size."""

    faiss_type: str
    factory: str
    dimension: int
    note: str | None = None


def plan_index(faiss_type: str, dimension: int, count: int) -> IndexPlan:
    """The index of that type for `count` vectors; raises UserError where there are too few to train it."""
    match faiss_type:
        case FaissType.HNSW:
            return IndexPlan(faiss_type, f"HNSW{HNSW_NEIGHBOURS}", dimension)
        case FaissType.IVF_FLAT:
            cells, note = _cells(count)
            return IndexPlan(faiss_type, f"IVF{cells},Flat", dimension, note)
        case FaissType.IVF_PQ:
            if count < (least := PQ_CENTROIDS * MIN_TRAINING_PER_CENTROID):
                raise UserError(
                    f"--faiss_type {faiss_type} was given for {count} passages; it needs at least {least} to be "
                    "trained on: use Flat, which is exact and quick for few passages"
                )
            cells, note = _cells(count)
            # np leaves out the polysemous codes: nothing here reads them, and they take most of the training time.
            return IndexPlan(faiss_type, f"IVF{cells},PQ{_codes(dimension)}np", dimension, note)
    plan = IndexPlan(faiss_type, faiss_type, dimension)
    cells = number_of_cells(plan)
    if cells > count:
        raise UserError(
            f"--faiss_type {faiss_type!r} cannot be trained on {count} passages: it has {cells} cells; "
            f"use Flat, or at most IVF{max(1, count // MIN_TRAINING_PER_CENTROID)}"
        )
    return plan


def _cells(count: int) -> tuple[int, str | None]:
    """The number of IVF cells: 4 * sqrt(count), and fewer where a cell would be trained on too few vectors.

    >>> _cells(1_000_000)
    (4000, None)
    >>> _cells(1_000)
    (25, '25 cells instead of 126, so that each has 39 of the 1000 passages to be trained on')
    """
    usual = round(4 * math.sqrt(count))
    cells = max(1, min(usual, count // MIN_TRAINING_PER_CENTROID))
    if cells == usual:
        return cells, None
    share = f"{MIN_TRAINING_PER_CENTROID} of the {count} passages"
    return cells, f"{cells} cells instead of {usual}, so that each has {share} to be trained on"


def _codes(dimension: int) -> int:
    """The number of one-byte codes of a PQ vector: the largest allowed divisor of the dimension.

    >>> _codes(384), _codes(768), _codes(1022)
    (96, 192, 146)
    """
    return max(codes for codes in range(1, max(1, dimension // PQ_DIMENSIONS_PER_CODE) + 1) if dimension % codes == 0)


def new_index(plan: IndexPlan) -> "faiss.Index":
    """The empty index, its search parameters set; raises UserError where faiss cannot read the text."""
    import faiss

    try:
        index = faiss.index_factory(plan.dimension, plan.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2]
        raise UserError(
            f"--faiss_type {plan.faiss_type!r} is none of {', '.join(FaissType)} and no faiss index_factory text for "
            f"{plan.dimension} dimensions ({reason}); Flat is the exact one"
        ) from error
    if (ivf := faiss.try_extract_index_ivf(index)) is not None:
        ivf.nprobe = min(ivf.nlist, round(2 * math.sqrt(ivf.nlist)))
        if (pq := getattr(faiss.downcast_index(ivf), "pq", None)) is not None:
            pq.cp.max_points_per_centroid = TRAINING_PER_CENTROID
    if (hnsw := getattr(index, "hnsw", None)) is not None:
        hnsw.efConstruction, hnsw.efSearch = HNSW_EF_CONSTRUCTION, HNSW_EF_SEARCH
    return index


def training_size(index: "faiss.Index") -> int:
    """How many vectors to train on; 0 where the index needs none."""
    if index.is_trained:
        return 0
    return max(MIN_TRAINING_SAMPLE, TRAINING_PER_CENTROID * _cells_of(index))


def index_bytes(plan: IndexPlan, count: int) -> int:
    """The size of the index of `count` vectors, in the file and in memory, nearly: some small tables are left out."""
    import faiss

    index = inner = new_index(plan)  # `index` owns the inner ones
    tables = per_vector = 0
    if (hnsw := getattr(index, "hnsw", None)) is not None:
        per_vector += 4 * hnsw.nb_neighbors(0) + 12  # links of the lowest level, where all are; a level and an offset
        inner = faiss.downcast_index(index.storage)
    if (ivf := faiss.try_extract_index_ivf(index)) is not None:
        tables = 4 * ivf.nlist * ivf.d
        per_vector += 8  # the row
        inner = faiss.downcast_index(ivf)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    if hasattr(inner, "pq"):
        tables += 4 * inner.pq.ksub * inner.d
    return tables + count * (per_vector + getattr(inner, "code_size", 4 * plan.dimension))


def parameters(index: "faiss.Index", plan: IndexPlan) -> dict[str, Any]:
    """The parameters that an index was built with and is searched with, for its card."""
    import faiss

    values: dict[str, Any] = {"factory": plan.factory}
    if (ivf := faiss.try_extract_index_ivf(index)) is not None:
        ivf = faiss.downcast_index(ivf)
        values |= {"nlist": ivf.nlist, "nprobe": ivf.nprobe}
        if hasattr(ivf, "pq"):
            values |= {"pq_codes": ivf.pq.M, "pq_bits": ivf.pq.nbits}
    if (hnsw := getattr(index, "hnsw", None)) is not None:
        values |= {"M": hnsw.nb_neighbors(1), "efConstruction": hnsw.efConstruction, "efSearch": hnsw.efSearch}
    return values


def number_of_cells(plan: IndexPlan) -> int:
    """The IVF cells, which are trained; 0 where there are none."""
    return _cells_of(new_index(plan))


def _cells_of(index: "faiss.Index") -> int:
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    return 0 if ivf is None else ivf.nlist
