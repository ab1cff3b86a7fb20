"""The card beside an index: how it was built, so that it is never searched with another encoder or corpus.

A dense index `e5_Flat.index` has `e5_Flat.index.json`, a bm25 folder holds `index_card.json`. A faiss index without a
card (downloaded, or built by FlashRAG) is compared with encoder and corpus at each start (index_check.py), and
`index_builder --write_card` writes its card.
"""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from flashrag.config import first_problem
from flashrag.errors import UserError
from flashrag.retriever.settings import Kind

BM25_CARD_NAME = "index_card.json"


class JsonRecord(BaseModel):
    """What is kept as one JSON object in a file. Unknown keys come from another version and are left out."""

    model_config = ConfigDict(frozen=True)

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path, name: str, remedy: str) -> Self:
        """The record in the file; where it holds something else, raises a UserError that names it and the remedy."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            problem = error if isinstance(error, OSError) else first_problem(error, cls)
            raise UserError(f"{name} {path} cannot be read ({problem}); {remedy}") from error


class IndexCard(JsonRecord):
    """`model`, `pooling`, … are None on a bm25 index, `bm25` on a dense one, the last four on an older card.

    On the card of an index that was built elsewhere, `compared_rows` says how many vectors were compared with the
    encoder's; its parameters and versions are not known.
    """

    retrieval_method: str
    count: int
    corpus_sha256: str
    corpus: str  # as given to the builder; for messages only
    model: str | None = None  # as given to the builder; for messages only
    model_sha256: str | None = None
    dimension: int | None = None
    pooling: str | None = None
    max_length: int | None = None
    query_instruction: str = ""
    passage_instruction: str = ""
    faiss_type: str | None = None
    bm25: dict[str, Any] | None = None  # tokenizer, k1, b and scoring variant
    faiss_parameters: dict[str, Any] | None = None  # as it was built and as it is searched
    index_bytes: int | None = None  # of the file, or of the folder's files without the card
    versions: dict[str, str] | None = None  # of the libraries that built it; for messages only
    compared_rows: int | None = None


def card_path(index_path: Path, retrieval_method: str) -> Path:
    if retrieval_method.lower() == Kind.BM25:
        return index_path / BM25_CARD_NAME
    return index_path.with_name(index_path.name + ".json")


def find_index(index_path: Path, retrieval_method: str) -> None:
    """Raise UserError unless `index_path` is the kind of index that the method needs."""
    build = f"build it with `python -m flashrag.retriever.index_builder --retrieval_method {retrieval_method} …`"
    if not index_path.exists():
        raise UserError(f"index_path: nothing at {index_path}; give the index's path, or {build}")
    if retrieval_method.lower() == Kind.BM25:
        if not index_path.is_dir():
            raise UserError(f"index_path: {index_path} is a file, but a bm25 index is a folder; {build}")
        if not card_path(index_path, retrieval_method).is_file():
            problem = f"holds no {BM25_CARD_NAME}, which says what words its passages were cut into"
            raise UserError(f"index_path: {index_path} {problem}; {build}")
    elif not index_path.is_file():
        raise UserError(f"index_path: {index_path} is a folder, but a dense index is a file (*.index); {build}")


def read_card(index_path: Path, retrieval_method: str) -> IndexCard | None:
    """The card of an index, or None where a dense index has none; raises UserError where index and card disagree."""
    path = card_path(index_path, retrieval_method)
    if not path.is_file():
        return None
    card = IndexCard.read(path, "index_path: the card", "build the index again")
    if card.index_bytes is not None and index_path.exists() and (found := path_bytes(index_path)) != card.index_bytes:
        raise UserError(
            f"index_path: {index_path} has {found} bytes, but its card says {card.index_bytes}: it was cut short or "
            "replaced; copy it again, or build it again"
        )
    return card


def check_card(
    card: IndexCard,
    retrieval_method: str,
    corpus_sha256: str,
    model_sha256: str | None,
    pooling: str | None = None,
    query_instruction: str | None = None,
) -> None:
    """Raise UserError unless the index was built by this method, from this corpus, with this encoder.

    `pooling` and `query_instruction` are the configuration's; None leaves them to the card.
    """
    if card.retrieval_method.lower() != retrieval_method.lower():
        raise UserError(
            f"retrieval_method: {retrieval_method!r} was given, but the index was built as {card.retrieval_method!r}; "
            "set retrieval_method to that, or give that method's index_path"
        )
    if card.corpus_sha256 != corpus_sha256:
        raise UserError(
            f"corpus_path: this corpus (sha256 {corpus_sha256[:12]}) is not the one that the index was built from "
            f"({card.corpus}, sha256 {card.corpus_sha256[:12]}, {card.count} passages); give that corpus, or build the "
            "index again"
        )
    if card.model_sha256 != model_sha256:
        raise UserError(
            f"retrieval_model_path: this encoder (sha256 {str(model_sha256)[:12]}) is not the one that the index was "
            f"built with ({card.model}, sha256 {str(card.model_sha256)[:12]}); give that encoder, or build the index "
            "again"
        )
    settings = (
        ("retrieval_pooling_method", pooling, card.pooling),
        ("instruction", query_instruction, card.query_instruction),
    )
    for key, given, built_with in settings:
        if given is not None and given != built_with:
            raise UserError(
                f"{key}: {given!r} was given, but the index was built with {built_with!r}; "
                "remove the key, or build the index again"
            )


def path_bytes(path: Path) -> int:
    """The size of an index: its file, or the files of its folder without the card."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if file.name != BM25_CARD_NAME)
