"""The retrieval keys of a configuration, typed: FlashRAG's names, and the values that this implementation supports."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flashrag.config import validated
from flashrag.retriever.faiss_index import GPU_MOST

CANDIDATES = 100  # of each retriever of a hybrid: reciprocal ranks need more than the few that are kept
ONE_VALUE = "FlashRAG's; no other value is supported"
# Keys beside `multi_retriever_setting` that hold for each retriever of a hybrid that does not set them itself.
SHARED_KEYS = (
    "corpus_path",
    "retrieval_batch_size",
    "retrieval_query_max_length",
    "retrieval_use_fp16",
    "trust_remote_code",
)


class Kind(StrEnum):
    DENSE = "dense"
    BM25 = "bm25"
    REMOTE = "remote"
    HYBRID = "hybrid"


FILES = {"index_path": "needs it; give its path", "corpus_path": "needs it; give its path"}
NEEDED_KEYS = {  # with the end of the message where one is not set
    Kind.DENSE: {"retrieval_model_path": "is dense; give the encoder's folder", **FILES},
    Kind.BM25: FILES,
    Kind.REMOTE: {"remote_retriever_url": "needs it; give the server's address"},
    Kind.HYBRID: {},  # its parts have their own
}
FAISS_KEYS = ("faiss_gpu", "faiss_mmap", "faiss_nprobe", "faiss_ef_search")


class MultiRetrieverSetting(BaseModel):
    """FlashRAG's `multi_retriever_setting`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    merge_method: Literal["rrf"] = Field("rrf", description="reciprocal-rank fusion; use_reranker can follow it")
    rrf_k: int = Field(60, ge=0, description="a document at rank r of a list gains 1 / (rrf_k + r), ranks from 1")
    topk: int = Field(5, ge=1, description="documents per query where the caller names no number")
    retriever_list: "tuple[RetrieverSettings, ...]" = Field(
        min_length=1,
        description="keys of one retriever each; its retrieval_topk is how many candidates it gives, by default 100",
    )


class RetrieverSettings(BaseModel):
    """The settings of a retriever. Relative paths start at the working directory, as in FlashRAG."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    retrieval_method: str = Field(
        str(Kind.HYBRID),
        min_length=1,
        description="e5, bge, minilm, … (a dense index), bm25 or remote; none for a hybrid",
    )
    retrieval_model_path: str | None = Field(
        None, description="the encoder's folder, or an installed package that carries a `model` folder"
    )
    index_path: Path | None = Field(None, description="the index file (dense) or folder (bm25) of index_builder")
    corpus_path: Path | None = Field(None, description="jsonl (or its .gz, .xz, .zst), one passage a line")
    remote_retriever_url: str | tuple[str, ...] | None = Field(
        None, description="the server that retrieval_method remote asks, or several that share the queries"
    )
    retrieval_topk: int = Field(
        5,
        ge=1,
        description="documents per query where the caller names no number; candidates, where a reranker follows",
    )
    retrieval_batch_size: int = Field(256, ge=1, description="queries encoded at once on a GPU; a CPU takes fewer")
    retrieval_query_max_length: int = Field(128, ge=8, description="tokens; the rest of a query is cut off")
    retrieval_pooling_method: Literal["mean", "cls", "pooler"] | None = Field(
        None, description="null: as the index was built"
    )
    retrieval_use_fp16: bool = Field(True, description="half precision for the encoder, on a GPU only")
    instruction: str | None = Field(None, description="text put before each query; null: as the index was built")
    trust_remote_code: bool = Field(False, description="run Python code that comes in a model folder")
    faiss_gpu: bool = Field(
        False, description="search on the GPUs, over which a Flat or IVF index is spread; needs faiss-gpu"
    )
    faiss_mmap: bool = Field(False, description="leave a dense index on the disk; a search pages parts in")
    faiss_nprobe: int | None = Field(None, ge=1, description="cells searched, IVF only; null: as the index says")
    faiss_ef_search: int | None = Field(None, ge=1, description="search depth, HNSW only; null: as the index says")
    gpu_id: str | int | None = Field(
        None, description="the GPUs for models and index, as in CUDA_VISIBLE_DEVICES; null: all"
    )

    use_multi_retriever: bool = Field(False, description="search with several retrievers and fuse their results")
    multi_retriever_setting: MultiRetrieverSetting | None = Field(None, description="which retrievers, and how")

    use_reranker: bool = Field(False, description="score the candidates again with a cross-encoder")
    rerank_model_path: str | None = Field(None, description="the cross-encoder's folder")
    rerank_model_name: str | None = Field(None, description="FlashRAG's, without effect: the folder decides")
    rerank_topk: int = Field(5, ge=1, description="documents kept where the caller names no number")
    rerank_max_length: int = Field(512, ge=8, description="tokens of query and passage together; the rest is cut off")
    rerank_batch_size: int = Field(256, ge=1, description="pairs scored at once on a GPU; a CPU takes fewer")
    rerank_use_fp16: bool = Field(True, description="half precision for the cross-encoder, on a GPU only")

    # Keys of published FlashRAG configurations that have one supported value here.
    bm25_backend: Literal["bm25s"] = Field("bm25s", description=ONE_VALUE)
    use_sentence_transformer: bool = Field(True, description="FlashRAG's; it is always used")
    rerank_pooling_method: None = Field(None, description=ONE_VALUE)
    save_retrieval_cache: Literal[False] = Field(False, description=ONE_VALUE)
    use_retrieval_cache: Literal[False] = Field(False, description=ONE_VALUE)

    @property
    def kind(self) -> Kind:
        method = self.retrieval_method.lower()
        return Kind(method) if method in list(Kind) else Kind.DENSE

    @model_validator(mode="before")
    @classmethod
    def _share_keys(cls, values: Any) -> Any:
        """Give the retrievers of a hybrid the keys that they share."""
        match values:
            case {"multi_retriever_setting": {"retriever_list": [*entries]} as setting}:
                shared = {key: values[key] for key in SHARED_KEYS if key in values}
                entries = [
                    {"retrieval_topk": CANDIDATES, **shared, **entry} if isinstance(entry, Mapping) else entry
                    for entry in entries
                ]
                return {**values, "multi_retriever_setting": {**setting, "retriever_list": entries}}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problem := next(_contradictions(self), None):
            raise ValueError(problem)
        return self

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RetrieverSettings":
        """The retrieval keys of a wider configuration (an evaluation's, for example); its other keys are left alone."""
        chosen = {key: config[key] for key in cls.model_fields if key in config}
        return validated(cls, chosen, "retrieval configuration")


MultiRetrieverSetting.model_rebuild()  # the two classes name each other
RetrieverSettings.model_rebuild()


def _contradictions(given: RetrieverSettings) -> Iterator[str]:
    """Every key that is missing, has no effect or contradicts another, in the words of the error message."""
    method, kind, multi = given.retrieval_method, given.kind, given.multi_retriever_setting
    if given.use_multi_retriever:
        if multi is None:
            yield "use_multi_retriever is true, but multi_retriever_setting is not set; give its retriever_list"
        single = {"retrieval_model_path": given.retrieval_model_path, "index_path": given.index_path}
        for key, value in {**single, "retrieval_method": None if kind is Kind.HYBRID else method}.items():
            if value is not None:
                yield f"{key} is {str(value)!r}, but use_multi_retriever is true; set it inside retriever_list"
    elif kind is Kind.HYBRID:
        yield "retrieval_method is not set; give e5, bge, minilm, …, bm25 or remote, or set use_multi_retriever"
    if multi is not None and any(part.gpu_id is not None for part in multi.retriever_list):
        yield "gpu_id holds for the whole process; set it beside multi_retriever_setting"
    for key, needed in NEEDED_KEYS[kind].items():
        if not getattr(given, key):
            yield f"{key} is not set, but retrieval_method {method!r} {needed}"
    if kind is Kind.BM25 and (model := given.retrieval_model_path) is not None:
        remedy = "remove retrieval_model_path or name the dense method"
        yield f"retrieval_model_path is {model!r}, but retrieval_method bm25 uses no model; {remedy}"
    for key in FAISS_KEYS if kind is not Kind.DENSE else ():
        if value := getattr(given, key):
            shown = "true" if value is True else value
            yield f"{key} is {shown}, but retrieval_method {kind} uses no faiss; remove {key}"
    if given.faiss_gpu and given.retrieval_topk > GPU_MOST:
        yield (
            f"retrieval_topk is {given.retrieval_topk}, but faiss_gpu is true, and a search on GPUs finds at most "
            f"{GPU_MOST} passages; lower the first, or set faiss_gpu to false"
        )
    if given.faiss_gpu and given.faiss_mmap:
        yield "faiss_gpu and faiss_mmap are both true, but an index is on GPUs or on the disk; set one of them to false"
    if given.use_reranker:
        if given.rerank_model_path is None:
            yield "rerank_model_path is not set, but use_reranker is true; give the cross-encoder's folder"
        candidates, key = (given.retrieval_topk, "retrieval_topk") if multi is None else (multi.topk, "topk")
        if given.rerank_topk > candidates:
            reach = f"only {key} = {candidates} candidates reach the reranker"
            yield f"rerank_topk is {given.rerank_topk}, but {reach}; raise {key} or lower rerank_topk"
