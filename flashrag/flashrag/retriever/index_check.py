"""Check an index without a card: is it of this corpus and this encoder? faiss is loaded on call.

Checked are the metric, how many vectors it holds, their dimension and their numbers: the number of a vector is the row
of its passage, and an IndexIDMap or an IVF index may keep them in any order. A sample of the vectors is compared with
the encoder's own. No other vector is read, so an index may be memory-mapped.
Does not cover: the metric (faiss_index.py), a type that cannot give its vectors back (nothing is compared then).
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flashrag.corpus import Corpus
from flashrag.errors import UserError
from flashrag.retriever.encoder_folder import check_dimension

if TYPE_CHECKING:
    import faiss

    from flashrag.retriever.encoder import Encoder

SAMPLE_ROWS = 64
SAMPLE_SEED = 20250325
# The shortest of so many passages is compared: nobody knows at how many tokens the index's passages were cut off.
CANDIDATES = 8


class Fidelity(NamedTuple):
    """How exactly a type keeps a unit vector: the least cosine with it, and the range of lengths."""

    cosine: float
    shortest: float
    longest: float


EXACT = Fidelity(0.99, 0.99, 1.01)  # half precision in the encoder moves the third digit
SCALAR = Fidelity(0.95, 0.95, 1.05)  # four to sixteen bits for each dimension
CODES = Fidelity(0.5, 0.3, 1.1)  # one code for several dimensions: here each passage must also be nearest to its own
# The share of passages that are nearest to another one's codes: on 1,000 of Wikipedia's, 0.3 with 12 bytes for 384
# dimensions, and 0.9 where the corpus is another.
MISSES = 1 / 3


class Part(NamedTuple):
    """An index, or a shard of one; `row_offset` turns its numbers into rows of the corpus."""

    index: "faiss.Index"
    row_offset: int = 0


def check_size(index: "faiss.Index", corpus: Corpus, encoder: "Encoder") -> None:
    """Raise UserError unless the index has a vector of the encoder's dimension for each passage."""
    corpus.check_index_of(index.ntotal)
    check_dimension(encoder.dimension, index.d)


def check_vectors(
    parts: Sequence[Part], corpus: Corpus, encoder: "Encoder", instruction: str, batch_size: int, any_length: bool
) -> int:
    """Raise UserError unless the parts hold the encoder's vector of each passage, as far as a sample tells.

    `any_length` takes vectors that are not of unit length, under inner product. Returns how many were compared.
    """
    import faiss

    kept = [_Kept(part) for part in parts]
    rows = np.concatenate([one.rows for one in kept])
    _check_rows(rows, len(corpus))
    edges = np.linspace(0, len(rows), min(SAMPLE_ROWS, len(rows)) + 1).astype(int)
    chance = np.random.default_rng(SAMPLE_SEED)
    drawn = [chance.integers(start, stop, CANDIDATES) for start, stop in itertools.pairwise(edges)]
    places = [min(some, key=lambda place: len(corpus[int(rows[place])].contents)) for some in drawn]
    firsts = np.cumsum([0, *(len(one.rows) for one in kept)])
    try:
        numbers = np.searchsorted(firsts, places, side="right") - 1
        found = np.stack([kept[one].vector(place - firsts[one]) for one, place in zip(numbers, places, strict=True)])
    except (RuntimeError, NotImplementedError):
        return 0
    chosen = rows[places]
    own = encoder.encode([document.contents for document in corpus.documents(chosen)], instruction, batch_size)
    _compare(found, own, chosen, kept[0])
    if not any_length or kept[0].index.metric_type == faiss.METRIC_L2:
        _check_lengths(found, chosen, kept[0].fidelity)
    return len(chosen)


class _Kept:
    """The vectors of a part in the order in which it keeps them; `rows` has the corpus row of each."""

    def __init__(self, part: Part) -> None:
        import faiss

        index, id_maps = faiss.downcast_index(part.index), []
        self._transforms: list[faiss.VectorTransform] = []
        while isinstance(index, (faiss.IndexIDMap, faiss.IndexPreTransform)):
            if isinstance(index, faiss.IndexIDMap):
                id_maps.append(faiss.vector_to_array(index.id_map))
            else:
                chain = (index.chain.at(number) for number in range(index.chain.size()))
                self._transforms.extend(faiss.downcast_VectorTransform(transform) for transform in chain)
            index = faiss.downcast_index(index.index)
        self.index = index
        self._whole = part.index  # it owns the inner one
        self._ends = np.array([index.ntotal])
        rows = np.arange(index.ntotal)
        if isinstance(index, faiss.IndexIVF):
            sizes = [index.invlists.list_size(cell) for cell in range(index.nlist)]
            self._ends = np.cumsum(sizes)
            ids = (faiss.rev_swig_ptr(index.invlists.get_ids(cell), size) for cell, size in enumerate(sizes) if size)
            rows = np.concatenate([*ids, np.empty(0, dtype=np.int64)])
        for id_map in reversed(id_maps):
            rows = id_map[rows]
        self.rows = rows + part.row_offset

    @property
    def kind(self) -> str:
        return type(self.index).__name__

    @property
    def fidelity(self) -> Fidelity:
        if any(transform.d_out < transform.d_in for transform in self._transforms):
            return CODES
        if self.kind.endswith(("Flat", "FlatIP", "FlatL2")):
            return EXACT
        return SCALAR if self.kind.endswith(("ScalarQuantizer", "SQ")) else CODES

    def vector(self, place: int) -> np.ndarray:
        """One stored vector; raises an error of faiss if the type cannot give it back."""
        import faiss

        if isinstance(self.index, faiss.IndexIVFFastScan):
            raise NotImplementedError("faiss 1.15 ends the process where such an index was read from a file")
        if isinstance(self.index, faiss.IndexIVF):  # through its cell: a map of all rows would have to be made first
            cell = int(np.searchsorted(self._ends, place, side="right"))
            vector = np.empty(self.index.d, dtype=np.float32)
            offset = int(place) - int(self._ends[cell - 1] if cell else 0)
            self.index.reconstruct_from_offset(cell, offset, faiss.swig_ptr(vector))
        else:
            vector = self.index.reconstruct(int(place))
        for transform in reversed(self._transforms):
            vector = transform.reverse_transform(vector[None])[0]
        return vector


def _check_rows(rows: np.ndarray, count: int) -> None:
    """Raise UserError unless every row of the corpus has one vector."""
    expected = f"expected the rows of the corpus, 0 to {count - 1}, each once"
    remedy = "number the vectors by the rows of their passages, or build the index again"
    outside = rows[(rows < 0) | (rows >= count)]
    if len(outside):
        problem = f"{len(outside)} of its {len(rows)} vectors have numbers outside the corpus, the first {outside[0]}"
        raise UserError(f"index_path: {problem}; {expected}; {remedy}")
    times = np.bincount(rows, minlength=count)
    if times.max(initial=0) > 1:
        row = int(times.argmax())
        raise UserError(f"index_path: {times[row]} of its vectors have the number {row}; {expected}; {remedy}")


def _compare(found: np.ndarray, own: np.ndarray, rows: np.ndarray, kept: _Kept) -> None:
    """Raise UserError unless the stored vectors point where the encoder's do."""
    with np.errstate(all="ignore"):  # a stored vector may be zero, or hold anything
        cosines = found @ own.T / np.linalg.norm(found, axis=1, keepdims=True)
    right = np.diag(cosines) >= kept.fidelity.cosine
    allowed = 0.0
    if kept.fidelity is CODES:
        right &= np.diag(cosines) >= cosines.max(axis=0) - 1e-6  # passages with the same text are equally near
        allowed = MISSES * len(rows)
    if (~right).sum() > allowed:
        place = int(np.argmin(right))
        raise UserError(
            f"index_path: {(~right).sum()} of {len(rows)} vectors compared are not the encoder's for their passages: "
            f"that of row {rows[place]} has the cosine {cosines[place, place]:.3f} with it, expected at least "
            f"{kept.fidelity.cosine} ({kept.kind}); give the corpus, the encoder and the pooling that the index was "
            "built with; if its passages had another instruction or max_length, give these to index_builder "
            "--write_card, once"
        )


def _check_lengths(found: np.ndarray, rows: np.ndarray, fidelity: Fidelity) -> None:
    """Raise UserError unless the stored vectors have unit length: longer ones would be ranked first."""
    lengths = np.linalg.norm(found, axis=1)
    wrong = ~((lengths >= fidelity.shortest) & (lengths <= fidelity.longest))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise UserError(
            f"index_path: {wrong.sum()} of {len(rows)} vectors compared are not of unit length: that of row "
            f"{rows[place]} has {lengths[place]:.3f}, expected 1, as scores are inner products of unit vectors; "
            "normalise them (faiss.normalize_L2) before they are added, or build the index again"
        )
