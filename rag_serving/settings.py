"""The server's configuration: FlashRAG's retrieval keys, the limits on requests and the size of the queue."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from flashrag.config import read_yaml_mapping, validated
from flashrag.retriever import GPU_MOST, RetrieverSettings


class ServerSettings(RetrieverSettings):
    """Validated once, at the start."""

    max_query_chars: int = Field(8192, ge=1, description="characters in one query")
    max_batch_queries: int = Field(1024, ge=1, description="queries in one request")
    max_top_n: int = Field(1000, ge=1, description="documents per query")
    max_documents: int = Field(100_000, ge=1, description="documents in one answer: queries times documents per query")
    max_body_bytes: int = Field(10_000_000, ge=1, description="bytes in the body of one request")

    search_batch_size: int = Field(64, ge=1, description="queries searched together")
    max_wait_ms: float = Field(
        5.0, ge=0, le=1000, description="under load, the longest wait of a search for returning clients"
    )
    max_queue_queries: int = Field(4096, ge=1, description="queries that may wait, over all requests")
    cache_queries: int = Field(4096, ge=0, description="results kept, of ten documents each; 0 for none")
    request_timeout_s: float = Field(30.0, gt=0, allow_inf_nan=False, description="a request's longest time to answer")
    drain_timeout_s: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="time after SIGTERM to finish the requests in hand"
    )
    log_queries: bool = Field(False, description="write each request's queries to stderr")

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.retrieval_topk > self.max_top_n:
            raise ValueError(
                f"retrieval_topk is {self.retrieval_topk}, but max_top_n is {self.max_top_n}; raise the second "
                "or lower the first"
            )
        parts = self.multi_retriever_setting.retriever_list if self.multi_retriever_setting else (self,)
        if self.max_top_n > GPU_MOST and any(part.faiss_gpu for part in parts):
            raise ValueError(
                f"max_top_n is {self.max_top_n}, but faiss_gpu is true, and a search on GPUs finds at most {GPU_MOST} "
                "passages; lower the first, or set faiss_gpu to false"
            )
        if self.max_batch_queries > self.max_queue_queries:
            raise ValueError(
                f"max_batch_queries is {self.max_batch_queries}, but max_queue_queries is {self.max_queue_queries}: "
                "the largest request would never fit; raise the second or lower the first"
            )
        return self


def read_settings(path: Path) -> ServerSettings:
    """The settings in a YAML file; raises UserError naming the key, the value and the expected values."""
    return validated(ServerSettings, read_yaml_mapping(path), str(path))
