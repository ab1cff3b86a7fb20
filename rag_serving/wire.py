"""The wire: what requests may hold (limits make the schema, so a breach is a 422) and what answers look like.

/retrieve is the dialect of Search-R1's, verl's and slime's clients; `query` (SkyRL) and `top_k` (rLLM) are taken too.
/queries is R1-Searcher's. Pure: no I/O, no retriever.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi.responses import Response
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from flashrag.document import Document, Hit

DEFAULT_TOP_N = 10
EMPTY_QUERY = "Query content cannot be empty"


class DocumentOut(BaseModel):
    id: str
    contents: str


class ScoredDocumentOut(BaseModel):
    document: DocumentOut
    score: float


class RetrieveOut(BaseModel):
    result: list[list[ScoredDocumentOut]] | list[list[DocumentOut]]


class QueriesOut(BaseModel):
    queries: list[str]
    answers: list[list[str]]


class RetrieversOut(BaseModel):
    total: int
    available: int


class HealthOut(BaseModel):
    status: str
    retrievers: RetrieversOut
    retrieval_method: str
    documents: int


class NotReadyOut(BaseModel):
    status: str


class ErrorOut(BaseModel):
    detail: str


SearchOut = list[DocumentOut] | tuple[list[DocumentOut], list[float]]
BatchSearchOut = list[list[DocumentOut]] | tuple[list[list[DocumentOut]], list[list[float]]]


class SearchIn(BaseModel):
    query: str
    top_n: int = DEFAULT_TOP_N
    return_score: bool = False


class BatchSearchIn(BaseModel):
    query: list[str]
    top_n: int = DEFAULT_TOP_N
    return_score: bool = False


def _declare_dialects(schema: dict[str, Any]) -> None:
    """Write the other names of /retrieve into its schema, which shows only the first of each."""
    properties = schema["properties"]
    properties["queries"] = {"anyOf": [properties["queries"], properties["queries"]["items"]]}
    properties |= {"query": properties["queries"], "top_k": properties["topk"]}
    del schema["required"]
    schema["anyOf"] = [{"required": ["queries"]}, {"required": ["query"]}]


class RetrieveIn(BaseModel):
    model_config = ConfigDict(json_schema_extra=_declare_dialects)

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


class QueriesIn(BaseModel):
    queries: list[str]
    k: int | None = None


@dataclass(frozen=True)
class RequestModels:
    """The request schemas under one server's limits."""

    search: type[SearchIn]
    batch_search: type[BatchSearchIn]
    retrieve: type[RetrieveIn]
    queries: type[QueriesIn]


def request_models(max_query_chars: int, max_batch_queries: int, max_top_n: int) -> RequestModels:
    query = Annotated[str, Field(max_length=max_query_chars)]
    queries = Annotated[list[query], Field(max_length=max_batch_queries)]
    top_n = Annotated[int, Field(ge=1, le=max_top_n)]
    one_or_many = Annotated[
        queries,
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(validation_alias=AliasChoices("queries", "query")),
    ]
    topk = Annotated[top_n | None, Field(validation_alias=AliasChoices("topk", "top_k"))]
    limited_top_n = (top_n, DEFAULT_TOP_N)
    return RequestModels(
        search=create_model("SearchIn", __base__=SearchIn, query=query, top_n=limited_top_n),
        batch_search=create_model("BatchSearchIn", __base__=BatchSearchIn, query=queries, top_n=limited_top_n),
        retrieve=create_model("RetrieveIn", __base__=RetrieveIn, queries=one_or_many, topk=(topk, None)),
        queries=create_model("QueriesIn", __base__=QueriesIn, queries=queries, k=(top_n | None, None)),
    )


class Json(Response):
    """An answer as JSON text in UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def document_json(document: Document) -> dict[str, str]:
    return {"id": document.id, "contents": document.contents}


def search_json(hits: Sequence[Hit], return_score: bool) -> list[Any]:
    """`[doc, …]`, or `[[doc, …], [score, …]]`."""
    documents = [document_json(hit.document) for hit in hits]
    return [documents, [hit.score for hit in hits]] if return_score else documents


def batch_search_json(ranked: Sequence[Sequence[Hit]], return_score: bool) -> list[Any]:
    """`[[doc, …], …]`, or `[[[doc, …], …], [[score, …], …]]`: two lists of one entry a query, however many queries."""
    documents = [[document_json(hit.document) for hit in hits] for hits in ranked]
    return [documents, [[hit.score for hit in hits] for hits in ranked]] if return_score else documents


def retrieve_json(ranked: Sequence[Sequence[Hit]], return_scores: bool) -> dict[str, Any]:
    if not return_scores:
        return {"result": batch_search_json(ranked, return_score=False)}
    return {
        "result": [[{"document": document_json(hit.document), "score": hit.score} for hit in hits] for hits in ranked]
    }


def queries_json(queries: Sequence[str], ranked: Sequence[Sequence[Hit]]) -> dict[str, Any]:
    return {"queries": list(queries), "answers": [[hit.document.contents for hit in hits] for hits in ranked]}
