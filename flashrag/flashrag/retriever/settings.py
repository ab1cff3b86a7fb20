"""The retrieval keys of a configuration, typed: FlashRAG's names, and the values that this implementation supports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flashrag.config import validated

BM25 = "bm25"


class RetrieverSettings(BaseModel):
    """What it takes to load a retriever. Relative paths start at the working directory, as in FlashRAG."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    retrieval_method: str = Field(min_length=1, description="e5, bge, minilm, … (a dense index), or bm25")
    retrieval_model_path: str | None = Field(
        None, description="the encoder's folder, or an installed package that carries a `model` folder"
    )
    index_path: Path = Field(description="the index file (dense) or folder (bm25) that index_builder wrote")
    corpus_path: Path = Field(description="jsonl, one passage a line")
    retrieval_topk: int = Field(5, ge=1, description="documents per query where the caller names no number")
    retrieval_batch_size: int = Field(256, ge=1, description="queries encoded at once")
    retrieval_query_max_length: int = Field(128, ge=8, description="tokens; the rest of a query is cut off")
    retrieval_pooling_method: Literal["mean", "cls"] | None = Field(None, description="None: as the index was built")
    retrieval_use_fp16: bool = Field(True, description="half precision for the encoder, on a GPU only")
    instruction: str | None = Field(None, description="text put before each query; None: as the index was built")
    faiss_gpu: bool = Field(False, description="search on the GPUs; needs faiss-gpu")
    gpu_id: str | int | None = Field(None, description="CUDA_VISIBLE_DEVICES for this process")
    # Keys of published FlashRAG configurations that have one supported value here.
    bm25_backend: Literal["bm25s"] = "bm25s"
    use_sentence_transformer: bool = True
    use_reranker: Literal[False] = False
    save_retrieval_cache: Literal[False] = False
    use_retrieval_cache: Literal[False] = False

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        if self.retrieval_method.lower() == BM25:
            if self.retrieval_model_path is not None:
                raise ValueError(
                    f"retrieval_model_path is {self.retrieval_model_path!r}, but retrieval_method bm25 uses no model; "
                    "remove retrieval_model_path or name the dense method"
                )
            if self.faiss_gpu:
                raise ValueError("faiss_gpu is true, but retrieval_method bm25 uses no faiss; set it to false")
        elif self.retrieval_model_path is None:
            raise ValueError(
                f"retrieval_model_path is not set, but retrieval_method {self.retrieval_method!r} is dense; "
                "give the encoder's folder"
            )
        return self

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RetrieverSettings":
        """The retrieval keys of a wider configuration (an evaluation's, for example); its other keys are left alone."""
        chosen = {key: config[key] for key in cls.model_fields if key in config}
        return validated(cls, chosen, "retrieval configuration")
