"""The server's configuration: FlashRAG's retrieval keys and the limits on requests."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from flashrag.config import read_yaml_mapping, validated
from flashrag.retriever.settings import RetrieverSettings


class ServerSettings(RetrieverSettings):
    """Validated once, at the start. A request over a limit is answered with 422."""

    max_query_chars: int = Field(8192, ge=1, description="characters in one query")
    max_batch_queries: int = Field(1024, ge=1, description="queries in one request")
    max_top_n: int = Field(1000, ge=1, description="documents per query")

    @model_validator(mode="after")
    def _default_within_limit(self) -> Self:
        if self.retrieval_topk > self.max_top_n:
            raise ValueError(
                f"retrieval_topk is {self.retrieval_topk}, but max_top_n is {self.max_top_n}; raise the second "
                "or lower the first"
            )
        return self


def read_settings(path: Path) -> ServerSettings:
    """The settings in a YAML file; raises UserError naming the key, the value and what was expected."""
    return validated(ServerSettings, read_yaml_mapping(path), str(path))
