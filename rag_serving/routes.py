"""The routes: the requests that one server's limits allow, and their answers.

/search and /batch_search are FlashRAG's and ReSearch's; /retrieve is the dialect of Search-R1's, verl's and slime's
clients, and takes `query` (SkyRL) and `top_k` (rLLM) too; /queries is R1-Searcher's. The request models are made here,
where the limits are known, so that the OpenAPI document shows the limits and a breach is a 422.
An unknown key is a 422 that names the route's own: a number of documents under another name must not be ignored.
A blank query in a batch refuses the whole batch and names its position: answering the rest would shift the pairing.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from flashrag.config import TOKEN_VARIABLE, suggestion
from rag_serving import wire
from rag_serving.gate import TIMEOUT_HEADER
from rag_serving.metrics import Refusal
from rag_serving.query_queue import Ranked
from rag_serving.searcher import QueueFull
from rag_serving.service import Service, Status

log = logging.getLogger(__name__)

DEFAULT_TOP_N = 10
EMPTY_QUERY = "Query content cannot be empty"
# The names of one thing in the routes of this and other servers, and in their clients.
SYNONYMS = (("top_n", "topk", "top_k", "k", "n", "num"), ("query", "queries"))
KEY_CHARS = 60  # of an unknown key that an answer repeats
DOCUMENTS_WRITTEN_AT_ONCE = 2000  # about 4 ms
# The gate checks the token; this shows it in the schema, and a button for it on the page /docs.
TOKEN = Depends(HTTPBearer(auto_error=False, description=f"only where the server was started with {TOKEN_VARIABLE}"))
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.ErrorOut, "description": text}
    for status, text in {
        400: "A blank query, or a body that is not JSON",
        401: "The token is missing or wrong",
        413: "The body is too large",
        429: "The queue is full; Retry-After says when to try again",
        500: "The search failed",
        503: "Loading, draining, or part of the index is down; Retry-After says when to try again",
        504: f"Not answered within the server's time, or within the seconds of the header {TIMEOUT_HEADER}",
    }.items()
}


class Body(BaseModel):
    """A request that holds known keys only."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: object) -> object:
        fields = cls.model_fields.items()
        known = [name for own, field in fields for name in getattr(field.validation_alias, "choices", [own])]
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                same = next((name for names in SYNONYMS if key in names for name in known if name in names), None)
                nearest = f"; did you mean {same!r}?" if same else suggestion(key[:KEY_CHARS], known)
                problem = f"unknown key {key[:KEY_CHARS]!r}{nearest}"
                raise PydanticCustomError("unknown_key", "{problem}", {"problem": problem})
        return values


def status_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["status"])
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": wire.NotReadyOut}}

    @router.get("/health", response_model=wire.HealthOut, responses=not_ready)
    @router.get("/healthz", response_model=wire.HealthOut, responses=not_ready)
    async def health() -> Response:
        if service.status is not Status.HEALTHY:
            return JSONResponse({"status": service.status}, 503)
        return JSONResponse(
            {
                "status": service.status,
                "retrievers": {"total": service.workers.count, "available": service.searcher.available},
                "retrieval_method": service.facts.method,
                "documents": service.facts.documents,
            }
        )

    @router.get("/metrics", response_class=Response, responses={401: {"model": wire.ErrorOut}}, dependencies=[TOKEN])
    async def prometheus() -> Response:
        return Response(await service.metrics_text(), media_type=CONTENT_TYPE_LATEST)

    return router


def search_routes(service: Service) -> APIRouter:
    # Each gives a ready Response: FastAPI's validation of answers would cost more than the search of a small corpus.
    router = APIRouter(tags=["search"], responses=REFUSALS, dependencies=[TOKEN])
    _add_flashrags_routes(router, service)
    _add_other_dialects(router, service)
    return router


def _add_flashrags_routes(router: APIRouter, service: Service) -> None:
    limits = service.settings
    Query = Annotated[str, Field(max_length=limits.max_query_chars)]
    TopN = Annotated[int, Field(ge=1, le=limits.max_top_n)]

    class SearchIn(Body):
        query: Query
        top_n: TopN = DEFAULT_TOP_N
        return_score: bool = False

    class BatchSearchIn(Body):
        query: list[Query] = Field(max_length=limits.max_batch_queries)
        top_n: TopN = DEFAULT_TOP_N
        return_score: bool = False

    @router.post("/search", response_model=wire.SearchOut)
    async def search(body: SearchIn) -> Response:
        if not body.query.strip():
            raise HTTPException(400, EMPTY_QUERY)
        ranked = await _rank(service, "/search", "query", [body.query], body.top_n)
        return await _written(lambda: wire.search_json(ranked[0], body.return_score), ranked)

    @router.post("/batch_search", response_model=wire.BatchSearchOut)
    async def batch_search(body: BatchSearchIn) -> Response:
        ranked = await _rank(service, "/batch_search", "query", body.query, body.top_n)
        return await _written(lambda: wire.batch_search_json(ranked, body.return_score), ranked)


def _add_other_dialects(router: APIRouter, service: Service) -> None:
    limits = service.settings
    Queries = list[Annotated[str, Field(max_length=limits.max_query_chars)]]
    Num = Annotated[int | None, Field(ge=1, le=limits.max_top_n)]

    class RetrieveIn(Body):
        model_config = ConfigDict(json_schema_extra=_declare_other_names)

        queries: Queries = Field(max_length=limits.max_batch_queries, validation_alias=AliasChoices("queries", "query"))
        topk: Num = Field(None, validation_alias=AliasChoices("topk", "top_k"))
        return_scores: bool = False

        @field_validator("queries", mode="before")
        @classmethod
        def _one_or_many(cls, value: object) -> object:
            return [value] if isinstance(value, str) else value

    class QueriesIn(Body):
        queries: Queries = Field(max_length=limits.max_batch_queries)
        k: Num = None

    @router.post("/retrieve", response_model=wire.RetrieveOut)
    async def retrieve(body: RetrieveIn) -> Response:
        ranked = await _rank(service, "/retrieve", "queries", body.queries, body.topk or service.facts.topk)
        return await _written(lambda: wire.retrieve_json(ranked, body.return_scores), ranked)

    @router.post("/queries", response_model=wire.QueriesOut)
    async def queries(body: QueriesIn) -> Response:
        ranked = await _rank(service, "/queries", "queries", body.queries, body.k or service.facts.topk)
        return await _written(lambda: wire.queries_json(body.queries, ranked), ranked)


def _declare_other_names(schema: dict[str, Any]) -> None:
    """Write the other names of /retrieve into its schema, which shows only the first of each."""
    properties = schema["properties"]
    properties["queries"] = {"anyOf": [properties["queries"], properties["queries"]["items"]]}
    properties |= {"query": properties["queries"], "top_k": properties["topk"]}
    del schema["required"]
    schema["oneOf"] = [{"required": ["queries"]}, {"required": ["query"]}]
    schema["not"] = {"required": ["topk", "top_k"]}


async def _rank(service: Service, route: str, field: str, queries: Sequence[str], num: int) -> list[Ranked]:
    """The best `num` hits of each query; a refusal if a query is blank or the answer would be too large."""
    for position, query in enumerate(queries):
        if not query.strip():
            raise HTTPException(400, f"{EMPTY_QUERY}: {field}[{position}]")
    limit = service.settings.max_documents
    if len(queries) * num > limit:
        text = f"{len(queries)} queries times {num} documents are more than {limit} (max_documents)"
        raise RequestValidationError([{"type": "too_many_documents", "loc": ("body",), "msg": text}])
    service.metrics.queries.labels(route).inc(len(queries))
    if service.settings.log_queries:
        log.warning("%s num=%d %r", route, num, list(queries))
    try:
        return await service.searcher.rank(queries, num)
    except QueueFull:
        service.metrics.refused.labels(Refusal.QUEUE_FULL).inc()
        raise


async def _written(build: Callable[[], Any], ranked: Sequence[Ranked]) -> Response:
    """The answer as JSON. A large one is written in a thread, so that other requests need not wait."""

    def write() -> Response:
        return Response(orjson.dumps(build()), media_type="application/json")

    return write() if sum(map(len, ranked)) <= DOCUMENTS_WRITTEN_AT_ONCE else await asyncio.to_thread(write)
