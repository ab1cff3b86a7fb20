"""Split a dense index: `python -m flashrag.retriever.index_shards --index_path … --num_shards S --save_dir …`

Writes the folder `<index name>.<S>shards`: per shard a faiss index over one contiguous slice of the corpus's rows, and
its card. The stored codes are copied as they are, never decoded, so a shard scores a passage exactly as the whole index
does; the shards of an IVF index share its centroids. The source is memory-mapped and one shard is in memory at a time.
Does not cover: graphs (HNSW), whose search has no exact split; bm25, whose word statistics are those of the whole
corpus. Serving the shards: rag_serving/cluster/deployments.py.
"""

import itertools
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
from tqdm import tqdm

from flashrag.errors import UserError, exit_on_user_error
from flashrag.preflight import (
    CHECK_HELP,
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    check_readable,
    checked_command,
    enforce,
    error,
    examine,
    fact,
    free_bytes,
    gathered,
    gib,
    output_folder,
    show_check,
)
from flashrag.retriever.faiss_index import is_large, read_index, write_index
from flashrag.retriever.index_card import IndexCard, JsonRecord, read_card
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.files import staged

PROGRAM = "python -m flashrag.retriever.index_shards"
MAX_SHARDS = 4096
# Types whose search is the same over a slice: each stored vector is scored by itself. By name: subclasses differ.
CODE_TYPES = {"IndexFlat", "IndexFlatIP", "IndexScalarQuantizer", "IndexPQ"}
LIST_TYPES = {"IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ"}


class ShardCard(JsonRecord):
    """Which slice a shard holds: rows `first_row` up to `first_row + count` of `total_rows`.

    `row_offset` turns a row number of the shard's faiss index into one of the corpus: `first_row`, or 0 where the shard
    keeps the corpus's own numbers (IVF). `split` is the same for all shards of one run of the command.
    """

    split: str
    shard: int
    num_shards: int
    first_row: int
    count: int
    total_rows: int
    row_offset: int
    file: str
    file_bytes: int
    index_card: IndexCard | None


@dataclass(frozen=True)
class SplitOptions:
    """Split a dense index into shards that together answer exactly as it does."""

    index_path: Path = flag("the index file that index_builder wrote")
    num_shards: int = flag("slices of equal size, at least 1", type=in_range(int, 1, MAX_SHARDS))
    save_dir: Path = flag("folder that the shards' folder goes into", Path("indexes"))
    check: bool = flag(CHECK_HELP, False)

    @property
    def target(self) -> Path:
        """The folder that is written."""
        return self.save_dir / f"{self.index_path.stem}.{self.num_shards}shards"


class SplitFacts(MachineFacts):
    """The index to split, opened without being read."""

    def __init__(self, options: SplitOptions) -> None:
        self.options = options

    @fact
    def card(self) -> IndexCard | None:
        path = self.options.index_path
        if not path.exists():
            raise UserError(f"--index_path: nothing at {path}; give the index file that index_builder wrote")
        if path.is_dir():
            raise UserError(
                f"--index_path: {path} is a folder, but a dense index is a file; a bm25 index is not split: its word "
                "statistics are those of the whole corpus. It is memory-mapped: serve it whole on every node"
            )
        check_readable("--index_path", path)
        return read_card(path, "dense")

    @fact
    def index_bytes(self) -> int:
        return self.options.index_path.stat().st_size if self.index else 0

    @fact
    def index(self) -> faiss.Index:
        _ = self.card  # the file is there, and as long as the card says
        if not is_large(self.options.index_path):
            read_index(self.options.index_path, key="--index_path")
        return _mapped(self.options.index_path)

    @fact
    def rows(self) -> list[tuple[int, int]]:
        return row_ranges(self.index.ntotal, self.options.num_shards)


def _place(facts: SplitFacts) -> Iterator[Finding]:
    options = facts.options
    if options.target.is_file():
        yield error(f"--save_dir {options.save_dir}: {options.target} is a file in the shards' place; remove it")
    yield from output_folder("--save_dir", options.save_dir, lambda: facts.index_bytes, "the shards")


SPLIT_RULES = {
    "split.index": gathered("index"),
    "split.shards": gathered("rows"),
    "split.folder": _place,
    **MACHINE_RULES,
}


def _sizes(facts: SplitFacts) -> str:
    shards = [stop - start for start, stop in facts.rows]
    return f"{len(shards)} of {max(shards):,} rows, about {gib(facts.index_bytes / len(shards))} each"


PLAN: Plan[SplitFacts] = {
    "split": {
        "command": lambda _: checked_command(PROGRAM, sys.argv[1:]),
        "index": lambda facts: f"{type(_innermost(facts.index)).__name__}, {facts.index.ntotal:,} x {facts.index.d}",
        "card": lambda facts: "copied to every shard" if facts.card else "none",
        "shards": _sizes,
        "folder": lambda facts: str(facts.options.target.absolute()),
        "disk": lambda facts: f"{gib(facts.index_bytes)} of {gib(free_bytes(facts.options.save_dir))} that are free",
    }
}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(SplitOptions, PROGRAM, argv)
    facts = SplitFacts(options)
    findings = examine(SPLIT_RULES, facts)
    if options.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    try:
        split_index(options, facts.card)
    except OSError as error:
        raise UserError(f"--save_dir {options.save_dir}: the shards cannot be written there ({error})") from error
    print(f"shards: {options.target} ({options.num_shards})")
    return 0


def split_index(options: SplitOptions, card: IndexCard | None) -> None:
    """Write every shard with its card; the folder appears whole or not at all."""
    source = _mapped(options.index_path)
    bounds = row_ranges(source.ntotal, options.num_shards)
    split = uuid.uuid4().hex
    with staged(options.target) as folder, tqdm(total=source.ntotal, unit=" rows", desc="split") as bar:
        folder.mkdir()
        for number, (start, stop) in enumerate(bounds):
            file = folder / f"shard_{number:04d}_of_{options.num_shards:04d}.index"
            row_offset = _write_slice(options.index_path, source, start, stop, file)
            shard = ShardCard(
                split=split,
                shard=number,
                num_shards=options.num_shards,
                first_row=start,
                count=stop - start,
                total_rows=source.ntotal,
                row_offset=row_offset,
                file=file.name,
                file_bytes=file.stat().st_size,
                index_card=card,
            )
            shard.write(file.with_name(file.name + ".json"))
            bar.update(stop - start)


def row_ranges(count: int, num_shards: int) -> list[tuple[int, int]]:
    """Contiguous `(start, stop)` slices of `count` rows, whose sizes differ by one at most.

    >>> row_ranges(10, 3)
    [(0, 3), (3, 6), (6, 10)]
    """
    if not 1 <= num_shards <= count:
        raise UserError(f"--num_shards {num_shards}: the index holds {count} vectors; give 1 to {count}")
    edges = [count * number // num_shards for number in range(num_shards + 1)]
    return list(itertools.pairwise(edges))


def read_shards(folder: Path) -> list[ShardCard]:
    """The cards of the shards in `folder`, in the order of their rows.

    Raises UserError unless the shards are all there, whole, and of one split.
    """
    again = "split the index again with `python -m flashrag.retriever.index_shards …`"
    found = [ShardCard.read(path, "index_path: a shard's card", again) for path in folder.glob("shard_*.index.json")]
    cards = sorted(found, key=lambda card: card.shard)
    if not cards:
        raise UserError(f"index_path: {folder} holds no shards (shard_*.index.json); {again}")
    if len({(card.split, card.total_rows, card.num_shards) for card in cards}) > 1:
        raise UserError(f"index_path: {folder} holds shards of different splits; {again}")
    missing = sorted(set(range(cards[0].num_shards)) - {card.shard for card in cards})
    if missing:
        raise UserError(
            f"index_path: {folder} holds {len(cards)} of {cards[0].num_shards} shards, missing {missing[:8]}; "
            f"copy them here, or {again}"
        )
    for card in cards:
        path = folder / card.file
        if not path.is_file():
            raise UserError(f"index_path: {path} is missing; copy it here, or {again}")
        if (size := path.stat().st_size) != card.file_bytes:
            raise UserError(f"index_path: {path} has {size} bytes, but its card says {card.file_bytes}; {again}")
    return cards


def _write_slice(index_path: Path, source: faiss.Index, start: int, stop: int, file: Path) -> int:
    """Write the rows from `start` up to `stop` of the mapped `source` as an index; returns its `row_offset`."""
    shard = _mapped(index_path)  # the same quantizers and settings; its vectors are replaced, and never read
    inner, inner_source = _innermost(shard), _innermost(source)
    if type(inner).__name__ in LIST_TYPES:
        lists = faiss.ArrayInvertedLists(inner.nlist, inner.code_size)
        inner.replace_invlists(lists, True)
        lists.this.disown()
        inner.ntotal = 0
        inner_source.copy_subset_to(inner, faiss.InvertedLists.SUBSET_TYPE_ID_RANGE, start, stop)
        row_offset = 0
    else:
        inner.codes = type(inner.codes)()
        inner.ntotal = 0
        size = inner_source.code_size
        codes = faiss.rev_swig_ptr(inner_source.codes.data(), inner_source.ntotal * size).reshape(-1, size)
        inner.add_sa_codes(codes[start:stop])
        row_offset = start
    shard.ntotal = inner.ntotal
    assert shard.ntotal == stop - start, f"{shard.ntotal} vectors were copied for the rows {start} to {stop}"
    write_index(shard, file)
    return row_offset


def _mapped(path: Path) -> faiss.Index:
    """The memory-mapped index at `path`; raises UserError if it is not an index of a type with an exact split."""
    index = read_index(path, mmap=True, key="--index_path")
    kind = type(_innermost(index)).__name__
    if kind not in CODE_TYPES | LIST_TYPES:
        raise UserError(
            f"--index_path: {path} is a faiss {kind}, which cannot be split exactly; expected Flat, SQ…, PQ…, IVF… "
            "(with OPQ or not); build one of these, or serve the index whole on every node"
        )
    return index


def _innermost(index: faiss.Index) -> faiss.Index:
    """The index that stores the vectors, behind any transformation of them (OPQ, PCA)."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


if __name__ == "__main__":
    sys.exit(main())
